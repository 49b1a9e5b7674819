"""Pooling of an image's states: over the patches, of the class token, or as the architecture does it."""

import pytest
import torch
import transformers

from edge_client.model.task_model import TaskModel
from protocol.manifest import Pooling, Task, TaskKind


def images(pooling):
    return Task(kind=TaskKind.IMAGE_CLASSIFICATION, labels=("no", "yes"), pooling=pooling)


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vit(tiny_vit):
    return transformers.ViTModel.from_pretrained(tiny_vit).eval()


def test_an_images_mean_is_over_its_patches_and_leaves_the_class_token_out(vit, pixels):
    model = TaskModel(vit, images(Pooling.MEAN)).eval()
    with torch.no_grad():
        states = vit(pixels).last_hidden_state
        assert states.shape[1] == 5
        torch.testing.assert_close(model.pooled({"pixel_values": pixels}), states[:, 1:].mean(1))


def test_the_class_token_is_an_images_first_state(vit, pixels):
    model = TaskModel(vit, images(Pooling.CLS)).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.pooled({"pixel_values": pixels}), vit(pixels).last_hidden_state[:, 0])


def test_training_leaves_the_statistics_of_batch_normalisation_as_the_base_has_them(pixels):
    """They do not travel: a device that moved them would tune another base, as would those that share it."""
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=2)
    model = TaskModel(transformers.ResNetForImageClassification(config), images(Pooling.MODEL)).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    together = model.logits({"pixel_values": pixels})
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    torch.testing.assert_close(model.logits({"pixel_values": pixels[:1]}), together[:1])  # an example's loss is its own
    assert model.training

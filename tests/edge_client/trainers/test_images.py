"""A trainer on images: pictures in folders, the run's own image processor, and no texts."""

import shutil

import numpy as np
import PIL.Image
import pytest

from edge_client.errors import BaseModelError, ConfigError
from edge_client.methods.head import Head
from edge_client.model.manifest_writer import write_manifest
from edge_client.trainers.torch_trainer import TorchTrainer
from protocol.assignment import AssignmentKind
from protocol.manifest import Pooling, Task, TaskKind

TASK = Task(kind=TaskKind.IMAGE_CLASSIFICATION, labels=("dark", "bright"), pooling=Pooling.CLS)


@pytest.fixture
def pictures(tmp_path):
    """Two training pictures of each label, one for validation."""
    for split, count in (("train", 2), ("validation", 1)):
        for label, value in (("dark", 20), ("bright", 220)):
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                PIL.Image.fromarray(np.full((10, 12, 3), value + index, np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "pictures"


def test_a_folder_of_pictures_is_trained_on_and_its_validation_split_evaluated(tiny_vit, pictures, assign, handout):
    manifest = write_manifest(tiny_vit, TASK, method=Head())
    trainer = TorchTrainer(tiny_vit, pictures, quantization="fp32")
    assert trainer.info(manifest).num_examples == 4
    calls = {"cancelled": lambda: False, "progress": lambda progress: None}
    result = trainer.run(assign(1, learning_rate=0.01, epochs=2), handout(manifest, 1), **calls)
    assert all(np.abs(value).max() > 0 for value in result.update.dense.values())
    evaluated = trainer.run(assign(1, kind=AssignmentKind.EVALUATE), handout(manifest, 1), **calls)
    assert evaluated.num_examples == 2


def test_another_image_processor_than_the_runs_is_refused(tiny_vit, pictures, tmp_path):
    manifest = write_manifest(tiny_vit, TASK, method=Head())
    other = shutil.copytree(tiny_vit, tmp_path / "other")
    path = other / "preprocessor_config.json"
    path.write_text(path.read_text().replace("0.5", "0.4"))
    with pytest.raises(BaseModelError, match="its image processor is not the one of tiny-vit"):
        TorchTrainer(other, pictures, quantization="fp32").info(manifest)


def test_a_model_of_images_embeds_no_texts(tiny_vit, pictures):
    trainer = TorchTrainer(tiny_vit, pictures, quantization="fp32")
    trainer.info(write_manifest(tiny_vit, TASK, method=Head()))
    with pytest.raises(ConfigError, match="image-classification tunes a model of images"):
        trainer.embed(["a text"])

"""Pre-trains a small vision transformer centrally, and writes it as the base model that devices tune.

Reference: Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021, arXiv:2010.11929 (ViT; there with
patches of 16 × 16 and more, and a class token).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn import functional

from benchmarks.command_line import BenchmarkError
from benchmarks.data.images import ImageData
from edge_client.data.images import encode_images, pixel_values
from edge_client.errors import DataError
from edge_client.model.quiet import quiet_loading
from edge_client.model.task_model import TaskModel
from edge_client.training.schedule import warmup_then_linear
from protocol.manifest import Pooling, Task, TaskKind

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

__all__ = ["Epoch", "Pretrained", "Pretraining", "pretrain"]

_EVALUATION_BATCH = 250


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """The model's size, and how it is trained.

    As they stand (seed 0; airplane, automobile, bird, cat and deer; 600 images of each to train on): 1.2 million
    parameters, 64 % of the test images right, 154 s of one core.
    """

    image_size: int = 32
    """Pixels each way; images are brought to this size."""
    patch_size: int = 8
    """Pixels of a patch each way; half of it takes four times as long, of every later run on the model too."""
    hidden_size: int = 192
    """Width of a token's state."""
    blocks: int = 4
    """Transformer blocks."""
    heads: int = 4
    """Attention heads."""
    mlp_size: int = 384
    """Width of a block's MLP."""
    epochs: int = 24
    """Passes over the data."""
    batch_size: int = 64
    """Images of a step."""
    learning_rate: float = 1e-3
    """Peak of AdamW's rate, which rises over ``warmup_ratio`` of all steps and falls linearly to zero."""
    warmup_ratio: float = 0.1
    """Share of the steps."""
    weight_decay: float = 0.05
    """AdamW's."""
    shift: int = 4
    """Pixels by which an image is moved at most, each way, besides being mirrored half of the time."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """How far pre-training is."""

    epoch: int
    """Epochs done."""
    epochs: int
    """Of how many."""
    loss: float
    """Mean cross-entropy of this one's steps, nats."""
    seconds: float
    """Since the start."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """What came of it."""

    accuracy: float
    """Share of the test images whose class is found."""
    parameters: int
    """Of the model that was written, without a head."""
    wall_s: float
    """Seconds it took."""
    cpu_s: float
    """Processor seconds it took."""


def pretrain(
    data: ImageData,
    folder: Path,
    settings: Pretraining,
    *,
    seed: int,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Pretrained:
    """Trains a classifier of the data's classes and writes its body, with its image processor, as a checkpoint.

    It is a pure function of data, settings and seed on one machine.

    Args:
        data: Its training and test rows are used.
        folder: To write, empty or not there.
        settings: How.
        seed: Of fresh weights, batches and augmentation.
        on_epoch: Called after every epoch.

    Raises:
        BenchmarkError: An image cannot be used, or the folder cannot be written.
    """
    start, start_cpu = time.perf_counter(), time.process_time()
    task = Task(kind=TaskKind.IMAGE_CLASSIFICATION, labels=data.labels, pooling=Pooling.MEAN)
    processor = _processor(settings)
    try:
        pixels, labels = _tensors(data.train, task, processor)
        tested = _tensors(data.test, task, processor)
    except DataError as error:
        raise BenchmarkError(str(error)) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TaskModel(_fresh(settings), task)
        for epoch, loss in enumerate(_losses(model, pixels, labels, settings), start=1):
            seconds = time.perf_counter() - start
            on_epoch(Epoch(epoch=epoch, epochs=settings.epochs, loss=loss, seconds=seconds))
    _save(model, processor, folder)
    return Pretrained(
        accuracy=_accuracy(model, *tested),
        parameters=sum(parameter.numel() for parameter in model.backbone.parameters()),
        wall_s=time.perf_counter() - start,
        cpu_s=time.process_time() - start_cpu,
    )


def _processor(settings: Pretraining) -> BaseImageProcessor:
    untyped: Any = transformers.ViTImageProcessorPil
    size = {"height": settings.image_size, "width": settings.image_size}
    processor: BaseImageProcessor = untyped(size=size)
    return processor


def _fresh(settings: Pretraining) -> transformers.PreTrainedModel:
    config = transformers.ViTConfig(
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.blocks,
        num_attention_heads=settings.heads,
        intermediate_size=settings.mlp_size,
    )
    return transformers.ViTModel(config, add_pooling_layer=False)


def _tensors(rows: Sequence[Any], task: Task, processor: BaseImageProcessor) -> tuple[Tensor, Tensor]:
    """Pixel values ``[n, 3, size, size]`` and labels ``[n]``."""
    examples = encode_images(rows, task, processor)
    images: Any = [example.inputs[0] for example in examples]
    labels = torch.tensor([int(example.label) for example in examples])
    return torch.from_numpy(pixel_values(images, processor)), labels


def _losses(model: TaskModel, pixels: Tensor, labels: Tensor, settings: Pretraining) -> Iterator[float]:
    """Trains; yields the mean loss of every epoch."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, weight_decay=settings.weight_decay, fused=True)
    steps, step = settings.epochs * -(-len(labels) // settings.batch_size), 0
    model.train()
    for _ in range(settings.epochs):
        losses = []
        for batch in torch.split(torch.randperm(len(labels)), settings.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * warmup_then_linear(step, steps, settings.warmup_ratio)
            logits = model.logits({"pixel_values": _augmented(pixels[batch], settings.shift)})
            loss = functional.cross_entropy(logits, labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            step += 1
        yield float(np.mean(losses))


def _augmented(pixels: Tensor, shift: int) -> Tensor:
    """Each image moved by up to ``shift`` pixels each way, what is bared reflecting the rest, and perhaps mirrored."""
    size = pixels.shape[-1]
    padded = functional.pad(pixels, (shift,) * 4, mode="reflect")
    corners = torch.randint(0, 2 * shift + 1, (len(pixels), 2)).tolist()
    moved = torch.stack([one[:, y : y + size, x : x + size] for one, (y, x) in zip(padded, corners, strict=True)])
    mirrored = torch.rand(len(pixels)) < 0.5
    return torch.where(mirrored[:, None, None, None], moved.flip(-1), moved)


def _accuracy(model: TaskModel, pixels: Tensor, labels: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        found = [model.logits({"pixel_values": batch}).argmax(-1) for batch in torch.split(pixels, _EVALUATION_BATCH)]
    return float((torch.cat(found) == labels).float().mean())


def _save(model: TaskModel, processor: BaseImageProcessor, folder: Path) -> None:
    """All of it or nothing."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch, quiet_loading():
            fresh = Path(scratch) / folder.name
            model.backbone.save_pretrained(fresh)
            processor.save_pretrained(fresh)
            fresh.replace(folder)
    except OSError as error:
        raise BenchmarkError(f"{folder} cannot be written: {error}") from error

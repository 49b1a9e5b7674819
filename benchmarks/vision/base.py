"""The vision transformer that studies tune: as an earlier run left it, or pretrained now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.command_line import BenchmarkError
from benchmarks.data.images import load_images
from benchmarks.data.tasks import PRETRAINING
from benchmarks.vision.pretrain import Pretraining, pretrain
from edge_client.errors import DataError

__all__ = ["vision_base"]


def vision_base(data: Path | None, folder: Path, *, seed: int, say: Callable[[str], None]) -> str:
    """The folder of a base model, which is written if it is not there.

    Args:
        data: Folder with a folder ``cifar10``; None: from the hub.
        folder: Where base models are kept.
        seed: Of the pre-training.
        say: Told how it goes.

    Raises:
        BenchmarkError: The data cannot be read, or the folder cannot be written.
    """
    base = folder / f"vit-cifar10-{seed}"
    if base.is_dir():
        say(f"the base model is {base}")
        return str(base)
    source = PRETRAINING.hub if data is None else data / "cifar10"
    try:
        images = load_images(source, classes=PRETRAINING.classes, train=None, selection=0, test=None, seed=seed)
    except DataError as error:
        raise BenchmarkError(str(error)) from error
    say(f"pre-training a vision transformer on {len(images.train)} images of {', '.join(PRETRAINING.classes)}")
    found = pretrain(
        images,
        base,
        Pretraining(),
        seed=seed,
        on_epoch=lambda done: say(f"epoch {done.epoch} of {done.epochs}: loss {done.loss:.3f}"),
    )
    say(
        f"{found.parameters:,} parameters, {found.accuracy:.1%} of the test images right, {found.cpu_s:.0f} s of a core"
    )
    return str(base)

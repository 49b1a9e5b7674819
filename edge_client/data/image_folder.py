"""Rows in a folder of pictures: ``<label>/<file>``, the label being the folder's name, as torchvision has it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_client.errors import ConfigError, DataError

__all__ = ["ImageFolder"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class ImageFolder:
    """Rows ``{"image": PIL image, "label": name}``, in the order of their paths; a file is opened when it is asked for.

    Args:
        folder: Holds a folder for each label.

    Raises:
        ConfigError: Pillow is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import PIL.Image
        except ImportError as error:
            raise ConfigError(f"pictures need Pillow ({error}): pip install 'tributary-fl[vision]'") from error
        self._open: Any = PIL.Image.open
        self._files = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in _SUFFIXES)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        path = self._files[index]
        try:
            with self._open(path) as image:
                image.load()
                return {"image": image, "label": path.parent.name}
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError on broken PNG files
            raise DataError(f"{path}: not a readable picture ({error})") from error

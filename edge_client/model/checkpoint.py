"""Finds a base model's files on disk and reads them without torch: fingerprint, digest of what prepares its inputs."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from edge_client.errors import BaseModelError
from protocol.errors import LocalProtocolError
from protocol.fingerprint import SourceTensor, files_digest, fingerprint

__all__ = ["Checkpoint"]

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PATTERNS = ["*.json", "*.txt", "*.model", _SINGLE, "model-*.safetensors"]
"""What is fetched from the hub: no pickles, and no second copy of the weights under another name."""
_VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_IMAGE_PROCESSOR = "preprocessor_config.json"
_HEADER_MAX_BYTES = 100 << 20
"""safetensors' own bound on its header."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder with ``config.json``, safetensors weights and a tokenizer or an image processor.

    Args:
        folder: Where it lies.
        name: Hub id or folder name, for people.
    """

    folder: Path
    name: str

    @classmethod
    def find(cls, model: str | Path) -> Self:
        """Finds a folder, or a hub id in the local cache or on the hub.

        Raises:
            BaseModelError: Neither, or it has no safetensors weights, or its weights are quantised already.
        """
        folder = Path(model)
        if not folder.is_dir():
            folder = _from_hub(str(model))
        checkpoint = cls(folder, folder.name if Path(model).is_dir() else str(model))
        if "quantization_config" in checkpoint.config:
            raise BaseModelError(
                f"{checkpoint.name}: its weights are quantised already; name the unquantised model, this device "
                "quantises it while loading"
            )
        checkpoint.weight_files()
        return checkpoint

    @property
    def config(self) -> dict[str, Any]:
        """``config.json``.

        Raises:
            BaseModelError: It is missing or not JSON.
        """
        path = self.folder / "config.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise BaseModelError(f"{path}: expected a transformers config ({error})") from error

    def weight_files(self) -> list[Path]:
        """The safetensors files of the checkpoint: one, or the shards that its index names.

        Raises:
            BaseModelError: There are none, or a shard is missing.
        """
        index = self.folder / _INDEX
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        else:
            names = [_SINGLE]
        files = [self.folder / name for name in names]
        missing = [path.name for path in files if not path.is_file()]
        if not missing:
            return files
        if not index.is_file() and next(self.folder.glob("*.bin"), None) is not None:
            raise BaseModelError(
                f"{self.name}: expected {_SINGLE}, found only pickled *.bin weights, which can run code when read; "
                "save the model once with `model.save_pretrained(folder)` and name that folder"
            )
        raise BaseModelError(f"{self.folder}: weight files are missing: {', '.join(missing)}")

    def fingerprint(self) -> str:
        """The fingerprint of :mod:`protocol.fingerprint` over all weight files, 64 hex digits."""
        try:
            return fingerprint(tensor for path in self.weight_files() for tensor in _read(path))
        except LocalProtocolError as error:
            raise BaseModelError(f"{self.name}: {error}") from error

    def tokenizer_digest(self) -> str:
        """Digest of what maps text to token ids: ``tokenizer.json``, or the vocabulary files where there is none.

        Raises:
            BaseModelError: The folder holds no tokenizer.
        """
        names = ("tokenizer.json",) if (self.folder / "tokenizer.json").is_file() else _VOCABULARIES
        files = [(name, self.folder / name) for name in names if (self.folder / name).is_file()]
        if not files:
            raise BaseModelError(f"{self.folder}: expected a tokenizer (tokenizer.json or a vocabulary file)")
        return files_digest((name, path.read_bytes()) for name, path in files)

    def image_processor_digest(self) -> str:
        """Digest of what maps an image to pixel values.

        Raises:
            BaseModelError: The folder holds no image processor.
        """
        path = self.folder / _IMAGE_PROCESSOR
        if not path.is_file():
            raise BaseModelError(f"{self.folder}: expected an image processor ({_IMAGE_PROCESSOR})")
        return files_digest([(path.name, path.read_bytes())])


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=_PATTERNS))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BaseModelError(
            f"{model!r} is neither a folder nor a model that the hub or its cache has: {reason}"
        ) from error


def _read(path: Path) -> Iterator[SourceTensor]:
    """Tensors of one safetensors file, as views of a memory map that live until the next one is asked for."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            body = 8 + int.from_bytes(mapped[:8], "little")
            if body > min(_HEADER_MAX_BYTES, len(mapped)):
                raise ValueError(f"a header of {body - 8} bytes")
            table = json.loads(mapped[8:body])
            table.pop("__metadata__", None)
            with memoryview(mapped) as view:
                for name, entry in table.items():
                    start, end = entry["data_offsets"]
                    if body + end > len(mapped):
                        raise ValueError(f"the file ends inside {name!r}; it is incomplete")
                    with view[body + start : body + end] as data:
                        yield name, entry["dtype"], tuple(entry["shape"]), data
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelError(f"{path}: not a readable safetensors file ({error})") from error

"""What stands between a device's rows and its model: a tokenizer for texts, an image processor for images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from edge_client.data.batching import collate
from edge_client.data.images import encode_images, pixel_values
from edge_client.data.sources import Rows
from edge_client.data.tasks import Encoded, Example, Image, encode_rows, encode_texts
from protocol.manifest import Task

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedTokenizerBase

__all__ = ["ImagePreprocessor", "Preprocessor", "TextPreprocessor"]


class Preprocessor(Protocol):
    """Makes examples of rows once, and batches of examples at every step."""

    @property
    def processing_class(self) -> PreTrainedTokenizerBase | BaseImageProcessor:
        """What transformers calls so: the base's tokenizer or image processor, which is saved beside a model."""

    def encode(self, rows: Rows) -> list[Example]:
        """Examples of all rows.

        Raises:
            DataError: A row does not fit the task; names it.
        """

    def collate(self, inputs: Sequence[Any], device: torch.device) -> dict[str, Tensor]:
        """A batch, by the names of the model's arguments.

        Args:
            inputs: Of examples that :meth:`encode` made; at least one.
            device: Where the tensors go.
        """


@dataclass(frozen=True, kw_only=True)
class TextPreprocessor:
    """Implements :class:`Preprocessor` for tasks on texts."""

    task: Task
    """The run's."""
    tokenizer: PreTrainedTokenizerBase
    """The base model's; it has a padding token."""
    with_types: bool
    """Whether the model takes token type ids."""

    @property
    def processing_class(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        return self.tokenizer

    def encode(self, rows: Rows) -> list[Example]:
        """See :func:`edge_client.data.tasks.encode_rows`."""
        return encode_rows(rows, self.task, self.tokenizer)

    def encode_texts(self, texts: Sequence[str]) -> list[Encoded]:
        """See :func:`edge_client.data.tasks.encode_texts`."""
        return encode_texts(texts, self.task, self.tokenizer)

    def collate(self, inputs: Sequence[Encoded], device: torch.device) -> dict[str, Tensor]:
        """See :func:`edge_client.data.batching.collate`."""
        return collate(inputs, int(self.tokenizer.pad_token_id), device, with_types=self.with_types)


@dataclass(frozen=True, kw_only=True)
class ImagePreprocessor:
    """Implements :class:`Preprocessor` for tasks on images."""

    task: Task
    """The run's."""
    processor: BaseImageProcessor
    """The base model's."""

    @property
    def processing_class(self) -> BaseImageProcessor:
        """The image processor."""
        return self.processor

    def encode(self, rows: Rows) -> list[Example]:
        """See :func:`edge_client.data.images.encode_images`."""
        return encode_images(rows, self.task, self.processor)

    def collate(self, inputs: Sequence[Image], device: torch.device) -> dict[str, Tensor]:
        """``pixel_values``, fp32 ``[batch, channels, height, width]``."""
        return {"pixel_values": torch.from_numpy(pixel_values(inputs, self.processor)).to(device)}

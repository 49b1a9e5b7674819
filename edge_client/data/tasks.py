"""Turns rows of text into token ids and labels, as the run's task says, and names the row that does not fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_client.data.located_row import LocatedRow
from edge_client.data.sources import Rows
from edge_client.errors import DataError
from protocol.manifest import Task, TaskKind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

__all__ = ["Encoded", "Example", "Image", "encode_rows", "encode_texts", "label_index", "whole_number"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text, or pair of texts, as token ids."""

    ids: Sequence[int]
    """Token ids, special tokens included."""
    types: Sequence[int] | None = None
    """Token type ids, where the tokenizer makes them."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Image:
    """One image at the size that the model takes."""

    pixels: NDArray[np.uint8]
    """``[channels, height, width]``."""

    def __len__(self) -> int:
        return 1  # all images of a run are alike


@dataclass(frozen=True, slots=True)
class Example:
    """One training or evaluation example."""

    inputs: tuple[Encoded, ...] | tuple[Image, ...]
    """One input; for an embedding task two, query and target."""
    label: float = 0.0
    """Label index or number."""
    unscored: int = 0
    """Leading tokens of a language model's input on which there is no loss: the prompt."""

    @property
    def length(self) -> int:
        """Tokens in all; 1 for an image."""
        return sum(map(len, self.inputs))

    @property
    def targets(self) -> int:
        """Tokens that a language model is scored on: each is predicted from those before it."""
        return len(self.inputs[0]) - max(1, self.unscored)


def encode_rows(rows: Rows, task: Task, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Encodes all rows of a task on texts.

    Args:
        rows: What :func:`~edge_client.data.sources.open_rows` gave.
        task: The run's task; texts are cut at its ``max_length`` tokens.
        tokenizer: The base model's.

    Raises:
        DataError: A row lacks a column, or its label is not in the manifest; names the row, counted from 0.
    """
    encode = {
        TaskKind.CLASSIFICATION: _labelled,
        TaskKind.REGRESSION: _labelled,
        TaskKind.EMBEDDING: _pairs,
        TaskKind.CAUSAL_LM: _language,
    }[task.kind]
    return encode(list(LocatedRow.all_of(rows)), task, tokenizer)


def encode_texts(
    texts: Sequence[str], task: Task, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[str] | None = None
) -> list[Encoded]:
    """Encodes texts, or pairs of them, each cut at ``task.max_length`` tokens."""
    if not texts:
        return []
    second = None if pairs is None else list(pairs)
    encoded = tokenizer(list(texts), second, truncation=True, max_length=task.max_length, return_attention_mask=False)
    types = encoded.get("token_type_ids") or [None] * len(texts)
    return [Encoded(ids, kinds) for ids, kinds in zip(encoded["input_ids"], types, strict=True)]


def label_index(value: object, names: Sequence[str], where: str) -> int:
    """The index of the label that a row names or numbers.

    Args:
        value: A name, or a whole number of any type.
        names: All labels in the order of their index.
        where: Begins the message of the error, such as ``row 3``.

    Raises:
        DataError: It is none of them.
    """
    if isinstance(value, str) and value in names:
        return names.index(value)
    index = whole_number(value)
    if index is None or not 0 <= index < len(names):
        hint = "; -1 marks a hidden label" if index == -1 else ""
        raise DataError(
            f"{where}: label {value!r} is none of the task's: expected one of {list(names)[:20]} "
            f"or 0..{len(names) - 1}{hint}"
        )
    return index


def whole_number(value: Any) -> int | None:
    """A whole number in any of the types that data sets hold it in, and as CSV spells it; None if it is none.

    Example:
        >>> whole_number("3"), whole_number(3.0), whole_number(0.5), whole_number(True)
        (3, 3, None, None)
    """
    try:
        number = float(value)
        return int(number) if number.is_integer() and not isinstance(value, bool) else None
    except (TypeError, ValueError, OverflowError):
        return None


def _labelled(rows: list[LocatedRow], task: Task, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    label = _class_label if task.kind is TaskKind.CLASSIFICATION else _number_label
    labels = [label(row, task) for row in rows]
    if task.template is not None:
        encoded = encode_texts([row.render(task.template) for row in rows], task, tokenizer)
    elif "sentence1" in rows[0].row:
        first, second = [row.text("sentence1") for row in rows], [row.text("sentence2") for row in rows]
        encoded = encode_texts(first, task, tokenizer, second)
    else:
        encoded = encode_texts([row.text("sentence") for row in rows], task, tokenizer)
    return [Example((one,), label) for one, label in zip(encoded, labels, strict=True)]


def _class_label(row: LocatedRow, task: Task) -> float:
    return float(label_index(row.row.get("label"), task.labels, f"row {row.index}"))


def _number_label(row: LocatedRow, task: Task) -> float:
    try:
        value = float(row.row["label"])
    except (KeyError, TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"row {row.index}: label {row.row.get('label')!r}: expected a finite number")
    return value


def _pairs(rows: list[LocatedRow], task: Task, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    queries = encode_texts([row.text("query") for row in rows], task, tokenizer)
    targets = encode_texts([row.text("target") for row in rows], task, tokenizer)
    return [Example(pair) for pair in zip(queries, targets, strict=True)]


def _language(rows: list[LocatedRow], task: Task, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    if task.template is None and "prompt" not in rows[0].row:
        whole = encode_texts([row.text("text") for row in rows], task, tokenizer)
        return [_scored(row, Example((one,))) for row, one in zip(rows, whole, strict=True)]
    prompts = [row.text("prompt") if task.template is None else row.render(task.template) for row in rows]
    heads = tokenizer(prompts, return_attention_mask=False)["input_ids"]
    answers = [row.text("answer") for row in rows]
    tails = tokenizer(answers, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    join = _joiner(task, tokenizer)
    return [_scored(row, join(head, tail)) for row, head, tail in zip(rows, heads, tails, strict=True)]


def _joiner(task: Task, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int], list[int]], Example]:
    """Joins prompt and answer, ending with the end token; what is too long loses the start of its prompt first."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def join(prompt: list[int], answer: list[int]) -> Example:
        if len(prompt) > 1 and prompt[-1:] == end:
            prompt = prompt[:-1]  # T5-like tokenizers close the prompt too
        answer = (answer + end)[: max(1, task.max_length - 1)]
        prompt = prompt[max(0, len(prompt) + len(answer) - task.max_length) :]
        return Example((Encoded(prompt + answer),), unscored=len(prompt))

    return join


def _scored(row: LocatedRow, example: Example) -> Example:
    if example.targets < 1:
        raise DataError(f"row {row.index}: nothing is left to predict; expected a text of at least two tokens")
    return example

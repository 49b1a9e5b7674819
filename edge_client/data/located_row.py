"""A row that knows where it stands in the data, so that a message can name it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from string import Formatter
from typing import Any

from edge_client.data.sources import Rows
from edge_client.errors import DataError

__all__ = ["LocatedRow"]

Row = Mapping[str, Any]


class LocatedRow:
    """A row and its index.

    Args:
        row: Column to value.
        index: Counted from 0.

    Raises:
        DataError: The row is no map.
    """

    def __init__(self, row: Row, index: int) -> None:
        if not isinstance(row, Mapping):
            raise DataError(f"row {index}: expected a map from column to value, got {type(row).__name__}")
        self.row, self.index = row, index

    @classmethod
    def all_of(cls, rows: Rows) -> Iterator[LocatedRow]:
        """All rows, opened one by one."""
        return (cls(rows[index], index) for index in range(len(rows)))

    def value(self, column: str) -> Any:
        """What a column holds.

        Raises:
            DataError: There is no such column.
        """
        if column not in self.row:
            raise DataError(
                f"row {self.index}: expected a column {column!r}, there are {', '.join(map(str, self.row))}"
            )
        return self.row[column]

    def text(self, column: str) -> str:
        """The text in a column.

        Raises:
            DataError: There is no such column, or something else in it.
        """
        value = self.value(column)
        if not isinstance(value, str):
            raise DataError(f"row {self.index}: column {column!r}: expected text, got {type(value).__name__}")
        return value

    def render(self, template: str) -> str:
        """Fills ``{column}`` fields only: no attribute, index, conversion or format specification is followed.

        Raises:
            DataError: The template has another kind of field, or the row no such text.
        """
        parts = []
        for literal, name, spec, conversion in Formatter().parse(template):
            if name is not None and (not name.isidentifier() or spec or conversion):
                raise DataError(f"the run's template may hold plain {{column}} fields only, got {name!r}")
            parts.append(literal + ("" if name is None else self.text(name)))
        return "".join(parts)

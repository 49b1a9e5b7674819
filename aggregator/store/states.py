"""The exact state of a version as objects: a stack of factors as the rows that were added, all else whole.

A module that is held as a stack grows by one round's terms at its end, so a version's stacks are those of the last one
and a few rows. These rows are an object of their own, and the version's object names, in order, the objects whose rows
make its stacks:

::

    version 7    {module/discarded, module/top/U, …, other/W}    rows: r5 r6 r7
    r5           {module/Lt [300, m], module/N [300, n]}         a chain begins with whole stacks
    r6, r7       {module/Lt [64, m], module/N [64, n]}           what rounds 6 and 7 added

A chain begins anew where a stack is not the last version's and more rows, and after :data:`LINKS_MAX` objects. What a
version is does not depend on how it is stored: its rows have the same bits in one object and in ten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aggregator.merge.stored_modules import is_stack
from aggregator.merge.tensor_file import Rows, TensorFile, view_tensors, view_texts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aggregator.merge.tensor_file import Stored, Tensors
    from aggregator.store.objects import ObjectStore

__all__ = ["StateFiles", "linked_objects", "put_state", "split_state", "view_state"]

LINKS_MAX = 16
"""Objects that the rows of one version lie in: each is opened by whoever reads it, and to write all rows anew every 16
rounds is a sixteenth of writing them every round."""
_ROWS = "rows"
_COMPARED_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class StateFiles:
    """The files of one version."""

    state: TensorFile
    """All but the stacks; it names the objects of their rows."""
    rows: TensorFile | None
    """The rows that no object has yet, if there are any."""

    @property
    def digest(self) -> str:
        """SHA-256 of :attr:`state`, hex: what names the version."""
        return self.state.digest()


def put_state(store: ObjectStore, tensors: Tensors, base: str | None) -> str:
    """Stores a version durably, its rows before what names them.

    Args:
        store: Where.
        tensors: The state, by name.
        base: Digest of the version it was made from; None: there is none.

    Returns:
        Its digest.

    Raises:
        MergeError: A value is not finite.
        StoreFull: The disk is full.
    """
    files = split_state(store, tensors, base)
    if files.rows is not None:
        store.put_pieces(files.rows.pieces(), files.rows.size)
    return store.put_pieces(files.state.pieces(), files.state.size)


def split_state(store: ObjectStore, tensors: Tensors, base: str | None) -> StateFiles:
    """The files of a version: a pure function of its value and of how the version before is stored.

    Arguments and errors are those of :func:`put_state`.
    """
    stacks = {name: value for name, value in tensors.items() if is_stack(name) and len(value)}
    rest = {name: value for name, value in tensors.items() if name not in stacks}
    links = () if base is None else linked_objects(store, base)
    known = _stacks(store, links)
    if len(links) >= LINKS_MAX or not all(_begins_with(stacks.get(name), rows) for name, rows in known.items()):
        links, known = (), {}
    added = {name: value[known[name].shape[0] if name in known else 0 :] for name, value in stacks.items()}
    rows = TensorFile({name: value for name, value in added.items() if len(value)})
    grown = any(map(len, added.values()))
    links = (*links, rows.digest()) if grown else links
    state = TensorFile(rest, {_ROWS: " ".join(links)} if links else None)
    return StateFiles(state=state, rows=rows if grown else None)


def view_state(store: ObjectStore, digest: str) -> Stored:
    """A version's tensors, mapped; a stack in several objects as its rows.

    Raises:
        StoreCorrupt: An object is missing.
        MergeError: One holds something else.
    """
    return {**view_tensors(store.view(digest)), **_stacks(store, linked_objects(store, digest))}


def linked_objects(store: ObjectStore, digest: str) -> tuple[str, ...]:
    """Digests of the objects that a version's rows lie in, in order.

    Raises:
        StoreCorrupt: The version's object is missing.
    """
    return tuple(view_texts(store.view(digest)).get(_ROWS, "").split())


def _stacks(store: ObjectStore, links: tuple[str, ...]) -> dict[str, NDArray[np.float64] | Rows]:
    parts: dict[str, list[NDArray[np.float64]]] = {}
    for link in links:
        for name, value in view_tensors(store.view(link)).items():
            parts.setdefault(name, []).append(value)
    return {name: Rows(tuple(found)) if len(found) > 1 else found[0] for name, found in parts.items()}


def _begins_with(stack: NDArray[np.float64] | None, rows: NDArray[np.float64] | Rows) -> bool:
    """Whether these are a stack's first rows, bit for bit."""
    if stack is None or stack.shape[1:] != rows.shape[1:] or len(stack) < rows.shape[0]:
        return False
    start = 0
    for part in rows.parts if isinstance(rows, Rows) else (rows,):
        step = max(1, _COMPARED_BYTES // max(1, part[:1].nbytes))
        for first in range(0, len(part), step):
            piece = part[first : first + step]
            if not np.array_equal(_bits(stack[start : start + len(piece)]), _bits(piece)):
                return False
            start += len(piece)
    return True


def _bits(values: NDArray[np.float64]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(values).view(np.uint64)

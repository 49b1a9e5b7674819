"""What a server optimizer is: a pure function from the cohort's merged change to the step that is taken.

The change is a point of the same space as the model: product-space offsets and dense differences. An optimizer may
therefore not look at single entries of ``B`` or ``A``, which are no property of the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from aggregator.merge import GlobalState
    from aggregator.optimizers.memory import Memory
    from protocol.manifest import Manifest

__all__ = ["Optimizer"]


class Optimizer(Protocol):
    """A pair of pure functions, as in optax; the memory is stored with the version."""

    def init(self, manifest: Manifest) -> Memory:
        """The memory of version 0.

        Raises:
            MergeError: The optimizer cannot handle a trainable of this run.
        """

    def update(self, change: GlobalState, memory: Memory) -> tuple[GlobalState, Memory]:
        """The step to add to the model, and what to remember.

        What is not in the change rests: it has no step, and what is remembered of it stays as it is.

        Args:
            change: ``D = Σ p_i D_i`` of this round, of the trainables that anybody trained.
            memory: Of the version that was handed out.
        """

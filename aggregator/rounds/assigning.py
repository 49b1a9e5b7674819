"""What each device is given to do: in the journal before it is told, and given back as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

from aggregator.config import RunConfig
from aggregator.merge.strategies import Requirement
from aggregator.rounds.handouts import Handouts
from aggregator.rounds.layers import LayerSelection
from aggregator.rounds.merge_rule import merge_rule
from aggregator.store.journal import AssignmentRow, Journal
from aggregator.store.rows import AssignmentState
from protocol.assignment import Assignment, AssignmentKind
from protocol.errors import NackCode, RemoteProtocolError
from protocol.manifest import Manifest
from protocol.payload import Factor

__all__ = ["Assignments"]


class Assignments:
    """The assignments of one run.

    Args:
        config: The operator's settings; how many rounds they say plays no part.
        manifest: The run's universe.
        journal: Where the assignments are.
        new_token: Source of their tokens, 32 hex digits.
    """

    def __init__(self, config: RunConfig, manifest: Manifest, journal: Journal, new_token: Callable[[], str]) -> None:
        self._config, self._manifest, self._journal, self._new_token = config, manifest, journal, new_token
        self._frozen = (Factor.A,) if Requirement.FROZEN_A in merge_rule(config).strategy.requires else ()

    def held_by(self, client: str, token: str) -> AssignmentRow:
        """A client's assignment, however it stands.

        Raises:
            RemoteProtocolError: It has no such assignment.
        """
        row = self._journal.assignment(token)
        if row is None or row.client != client:
            raise RemoteProtocolError("no such assignment of yours; ask for work again", NackCode.UNKNOWN)
        return row

    def given_back(self, client: str, round_number: int) -> Assignment | None:
        """What a client was given in a round, open again if it was settled; None if nothing was."""
        row = self._journal.assignment_of(round_number, client)
        if row is None:
            return None
        if row.state is not AssignmentState.OPEN:
            self._journal.settle_assignment(row.token, AssignmentState.OPEN)
        return Assignment.from_json(row.document)

    def give(
        self,
        client: str,
        round_number: int,
        handouts: Handouts,
        *,
        rank: int,
        slots: int,
        layers: LayerSelection | None,
    ) -> Assignment:
        """Gives a client the round's work.

        Args:
            client: Its key.
            round_number: The round.
            handouts: Those of the version to begin from.
            rank: What the client trains.
            slots: What it is handed.
            layers: What the run selected; None: it trains all.
        """
        config, probe = self._config, self._config.probe_in(round_number)
        local = replace(config.local, learning_rate_scale=config.learning_rate_scale(round_number))
        seed = hashlib.sha256(f"client\0{config.seed}\0{round_number}\0{client}".encode()).digest()
        active = self._active(rank, layers)
        if layers is None or active is None:
            handout, inactive = handouts.offer(slots), None
        else:
            handout, inactive = handouts.offer_parts(slots, active)
        assignment = Assignment(
            kind=AssignmentKind.TRAIN if probe is None else AssignmentKind.PROBE,
            run=config.run,
            round=round_number,
            version=handouts.version.version,
            token=self._new_token(),
            rank=rank,
            handout=handout,
            update_codec=config.update_codec,
            active=active,
            inactive=inactive,
            frozen_factors=self._frozen,
            local=local,
            probe=probe,
            seed=int.from_bytes(seed[:4], "little"),
        )
        self._journal.add_assignment(
            AssignmentRow(
                token=assignment.token,
                round=round_number,
                version=assignment.version,
                client=client,
                document=assignment.to_json(),
            )
        )
        return assignment

    def _active(self, rank: int, layers: LayerSelection | None) -> tuple[str, ...] | None:
        """What a device of this rank trains; None, as it is written: all."""
        active = self._manifest.active(rank)
        if layers is not None:
            active = layers.active(active)
        return None if len(active) == len(self._manifest.names) else active

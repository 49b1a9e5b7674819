"""Whether a device, or what it offers, fits the run: pure checks, each with the reason to tell it."""

from __future__ import annotations

from aggregator.config import RunConfig
from aggregator.merge.strategies import Requirement
from aggregator.rounds.merge_rule import merge_rule
from protocol.assignment import Assignment, AssignmentKind
from protocol.errors import NackCode, RemoteProtocolError
from protocol.manifest import Manifest
from protocol.messages import Offer, Ready, Report
from protocol.probes import LayerReport, Probe

__all__ = ["check_device", "check_offer", "check_report"]


def check_device(config: RunConfig, manifest: Manifest, message: Ready) -> None:
    """Checks what a device says of itself.

    Raises:
        RemoteProtocolError: It cannot take part; ``code`` and message say why and what to do.
    """
    base, rank_max = manifest.base, manifest.rank_max
    if message.run != config.run:
        raise RemoteProtocolError(f"this aggregator serves run {config.run!r}", NackCode.WRONG_RUN)
    if message.manifest != manifest.digest:
        raise RemoteProtocolError("your manifest is not this run's; fetch it again", NackCode.WRONG_MANIFEST)
    if message.fingerprint != base.fingerprint:
        raise RemoteProtocolError(
            f"your base model has fingerprint {message.fingerprint[:12]}…, this run tunes {base.name!r} "
            f"({base.fingerprint[:12]}…): load that model",
            NackCode.WRONG_BASE,
        )
    if message.quantization not in base.quantizations:
        raise RemoteProtocolError(
            f"this run takes no base held in {message.quantization}, only in {', '.join(base.quantizations)}",
            NackCode.WRONG_BASE,
        )
    if message.rank is not None and not 1 <= message.rank <= rank_max:
        raise RemoteProtocolError(f"rank {message.rank} is not in 1..{rank_max}", NackCode.RANK)
    requires, rank = merge_rule(config).strategy.requires, message.rank or config.default_rank
    if rank != config.default_rank and Requirement.EQUAL_RANKS in requires:
        raise RemoteProtocolError(
            f"this run merges by {config.strategy}, which takes devices of rank {config.default_rank} alone",
            NackCode.RANK,
        )
    if Requirement.RESIDUAL in requires and manifest.low_rank and not message.residual:
        raise RemoteProtocolError(
            f"this run merges by {config.strategy}, whose devices hold the model as a residual: set residual=True",
            NackCode.RANK,
        )
    _check_num_examples(config, message.num_examples)


def check_offer(config: RunConfig, manifest: Manifest, assignment: Assignment, message: Offer) -> None:
    """Checks an offered update against its assignment, before a byte of it travels.

    Raises:
        RemoteProtocolError: It cannot be an update for this assignment.
    """
    if assignment.kind is not AssignmentKind.TRAIN:
        raise RemoteProtocolError("this assignment asks for metrics, not for an update", NackCode.SHAPE)
    layout = assignment.update_layout(manifest)
    size = layout.object_bytes(assignment.rank, assignment.update_codec)
    if message.size != size:
        raise RemoteProtocolError(
            f"an update of rank {assignment.rank} in {assignment.update_codec} has {size} bytes, not {message.size}",
            NackCode.SHAPE,
        )
    _check_num_examples(config, message.num_examples)


def check_report(config: RunConfig, manifest: Manifest, assignment: Assignment, message: Report) -> None:
    """Checks an answer against its assignment.

    Raises:
        RemoteProtocolError: It cannot be an answer to this assignment.
    """
    if assignment.kind is not AssignmentKind.PROBE or assignment.probe is None:
        raise RemoteProtocolError("this assignment asks for an update, not for metrics", NackCode.SHAPE)
    LayerReport.of_metrics(Probe(assignment.probe), manifest.layers[-1] + 1, message.metrics)
    _check_num_examples(config, message.num_examples)


def _check_num_examples(config: RunConfig, num_examples: int) -> None:
    if not 1 <= num_examples <= config.num_examples_max:
        raise RemoteProtocolError(
            f"num_examples is {num_examples}; this run takes 1..{config.num_examples_max}", NackCode.NUM_EXAMPLES
        )

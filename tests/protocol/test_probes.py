"""What a probe's answer must be, whoever sends it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import NackCode, RemoteProtocolError
from protocol.header import decode, encode
from protocol.messages import Report
from protocol.probes import LAYERS_MAX, LayerReport, Probe

SCORE = st.floats(-1e12, 1e12)


@given(st.lists(SCORE, max_size=LAYERS_MAX).map(tuple), st.none() | st.floats(0.0, 1.0))
def test_a_report_survives_the_wire(scores: tuple[float, ...], share: float | None) -> None:
    probe = Probe.LAYER_SCORES if share is None else Probe.KEPT_LAYERS
    report = LayerReport(scores=scores, kept_share=share)
    sent = decode(encode(Report(token="0" * 32, num_examples=9, metrics=report.metrics)))
    assert isinstance(sent, Report)
    assert LayerReport.of_metrics(probe, len(scores), sent.metrics) == report


@pytest.mark.parametrize(
    ("probe", "metrics", "told"),
    [
        (Probe.LAYER_SCORES, {"layer.0": 1.0}, "expected scores of 2 layers, got 1"),
        (Probe.LAYER_SCORES, {}, "expected scores of 2 layers, got 0"),
        (Probe.LAYER_SCORES, {"layer.0": 1.0, "layer.2": 1.0}, "'layer.2' has no place"),
        (Probe.LAYER_SCORES, {"layer.0": 1.0, "layer.1": 1.0, "kept_share": 0.5}, "'kept_share' has no place"),
        (Probe.LAYER_SCORES, {"layer.0": 1.0, "layer.1": -1e300}, "score -1e\\+300"),
        (Probe.KEPT_LAYERS, {"layer.0": 1.0, "layer.1": 1.0}, "kept_share is missing"),
        (Probe.KEPT_LAYERS, {"layer.0": 1.0, "layer.1": 1.0, "kept_share": 1.5}, "kept_share is 1.5"),
        (Probe.KEPT_LAYERS, {"layer.0": 1.0, "layer.1": 1.0, "kept_share": -0.5}, "kept_share is -0.5"),
    ],
)
def test_another_answer_is_refused(probe: Probe, metrics: dict[str, float], told: str) -> None:
    with pytest.raises(RemoteProtocolError, match=told) as caught:
        LayerReport.of_metrics(probe, 2, metrics)
    assert caught.value.code is NackCode.SHAPE

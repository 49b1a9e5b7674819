"""However many metrics a trainer has, what is sent of them fits a header."""

import math

import pytest

from edge_client.session.jobs import _tidy
from protocol.header import encode
from protocol.messages import Offer
from protocol.probes import LAYERS_MAX, LayerReport


def offered(metrics):
    return encode(
        Offer(upload="0" * 64, token="0" * 32, size=1 << 34, sha256="0" * 64, num_examples=1 << 40, metrics=metrics)
    )


@pytest.mark.parametrize("length", [1, 30, 31, 32, 64])
def test_what_is_left_fits(length):
    many = {f"{number:0{length}}": -1.5 for number in range(10 ** min(length, 3))}
    kept = _tidy(many)
    assert list(kept) == list(many)[: len(kept)]
    assert len(kept) >= min(len(many), 40)
    assert offered(kept)


def test_names_that_are_long_and_numbers_that_are_none_are_left_out():
    assert _tidy({"x" * 65: 1.0, "loss": math.nan, "accuracy": 0.5}) == {"accuracy": 0.5}


def test_a_report_of_as_many_layers_as_there_may_be_is_sent_whole():
    report = LayerReport(scores=(1.25,) * LAYERS_MAX, kept_share=0.5)
    assert _tidy(report.metrics) == report.metrics

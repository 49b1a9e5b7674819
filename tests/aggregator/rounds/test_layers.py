"""Which layers are selected from what devices told."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aggregator.rounds.layers import LayerSelection, select_layers
from protocol.probes import LayerReport

REPORTS = st.lists(
    st.tuples(st.integers(1, 1 << 40), st.lists(st.floats(-1e12, 1e12), min_size=6, max_size=6).map(tuple)),
    min_size=1,
    max_size=5,
)


@given(REPORTS, st.floats(0.01, 1.0))
def test_the_best_by_weighted_mean_are_kept(told, share):
    selection = select_layers([(n, LayerReport(scores=scores)) for n, scores in told], range(6), share)
    weights = np.array([n for n, _ in told], float)
    means = (weights / weights.sum()) @ np.array([scores for _, scores in told])
    np.testing.assert_allclose(selection.scores, means, rtol=1e-6, atol=1e-3)
    assert len(selection.layers) == max(1, int(6 * share + 0.5))
    left_out = [selection.scores[layer] for layer in range(6) if layer not in selection.layers]
    assert all(selection.scores[layer] >= max(left_out, default=-np.inf) for layer in selection.layers)
    assert selection.layers == tuple(sorted(selection.layers))


def test_devices_own_shares_are_averaged_by_examples():
    reports = [(30, LayerReport(scores=(1.0, 3.0, 2.0, 0.0), kept_share=0.25))]
    assert select_layers(reports, range(4), None).layers == (1,)
    reports.append((30, LayerReport(scores=(1.0, 3.0, 2.0, 0.0), kept_share=0.75)))
    assert select_layers(reports, range(4), None).layers == (1, 2)
    reports.append((600, LayerReport(scores=(1.0, 3.0, 2.0, 0.0), kept_share=0.0)))
    assert select_layers(reports, range(4), None).layers == (1,)


def test_layers_without_trainables_are_not_chosen_and_equal_ones_from_below():
    reports = [(1, LayerReport(scores=(5.0, 1.0, 9.0, 1.0, 1.0)))]
    assert select_layers(reports, (1, 3, 4), 0.5).layers == (1, 3)


def test_a_selection_survives_its_line_and_names_what_is_active():
    selection = LayerSelection(layers=(0, 11), scores=(0.1, 2.5), kept_share=1 / 3)
    assert LayerSelection.of_line(selection.line(4, 2)) == selection
    names = ("classifier.weight", "prefix.0", "prefix.1", "encoder.layer.11.output.dense", "h.2.attn.c_attn")
    assert selection.active(names) == ("classifier.weight", "prefix.0", "encoder.layer.11.output.dense")

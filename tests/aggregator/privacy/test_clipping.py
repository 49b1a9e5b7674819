"""Clipping in product space: norms against multiplied-out matrices, and how far one device can move a merge."""

from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from aggregator.merge import ClientUpdate, EncodedAdapter, GlobalState, MergeError
from aggregator.merge.strategies import Delta
from aggregator.privacy.clipping import Clipping, update_norms
from protocol.codecs import Codec
from protocol.payload import AdapterTensors, Factor, Layout


def adapter(layout, slots, seed, size=1.0):
    rng, zeros = np.random.default_rng(seed), layout.zeros(slots)
    return AdapterTensors(
        {name: (size * rng.standard_normal(value.shape)).astype(np.float32) for name, value in zeros.dense.items()},
        (size * rng.standard_normal(zeros.slots.shape)).astype(np.float32),
    )


def update(manifest, client, rank, size=1.0, active=None, frozen=(), examples=7):
    layout = Layout.of(manifest, active, frozen)
    tensors = adapter(layout, rank, sum(client.encode()), size)
    return ClientUpdate(
        client=client, num_examples=examples, rank=rank, tensors=tensors, active=active, frozen=frozen
    )  # fmt: skip


def change(manifest, handout, given):
    """What a device changed, multiplied out: every product and dense tensor as one vector, zero where it has none."""
    layout, own = Layout.of(manifest), Layout.of(manifest, given.active, given.frozen)
    parts = []
    for module in manifest.low_rank:
        B, A = (part.astype(np.float64) for part in layout.factors(handout.slots[: given.rank], module.name))
        dB, dA = np.zeros_like(B), np.zeros_like(A)
        if given.active is None or module.name in given.active:
            dB, dA = (part.astype(np.float64) for part in own.factors(given.tensors.slots, module.name))
        parts.append(((B + dB) @ (A + dA) - B @ A).ravel())
    for tensor in manifest.dense:
        parts.append(given.tensors.dense.get(tensor.name, np.zeros(tensor.shape)).astype(np.float64).ravel())
    return np.concatenate(parts)


@pytest.fixture
def cohort(manifest):
    return [
        update(manifest, "a", 1),
        update(manifest, "b", 4, size=0.01),
        update(manifest, "c", 3, active=("down", "bias")),
        update(manifest, "d", 2, frozen=(Factor.A,)),
        update(manifest, "e", 2, active=("bias",), size=30.0),
        update(manifest, "f", 2, size=0.0),
    ]


def merged(manifest, handout, updates, clipping, step=1.0):
    weighted = clipping.weigh(updates, manifest, handout)
    state, _ = Delta().merge(
        Delta().start(manifest, GlobalState.zeros(manifest), 0), manifest, handout, weighted.updates,
        step=step * weighted.step,
    )  # fmt: skip
    modules = [state.offset.low_rank[module.name].factors().dense().ravel() for module in manifest.low_rank]
    return np.concatenate([*modules, *(state.offset.dense[tensor.name].ravel() for tensor in manifest.dense)])


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_the_norm_is_that_of_all_that_was_changed_multiplied_out(manifest, cohort, size):
    handout = adapter(Layout.of(manifest), 4, 1, size)
    expected = [np.linalg.norm(change(manifest, handout, each)) for each in cohort]
    np.testing.assert_allclose(update_norms(cohort, manifest, handout), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("clip_norm", [0.05, 3.0, 1e6])
def test_the_merge_is_the_sum_of_clipped_changes_over_a_fixed_number(manifest, cohort, clip_norm):
    handout, clipping = adapter(Layout.of(manifest), 4, 1), Clipping(clip_norm=clip_norm, cohort_size=10)
    changes = [change(manifest, handout, each) for each in cohort]
    expected = sum(each * min(1.0, clip_norm / max(1e-30, np.linalg.norm(each))) for each in changes) / 10
    np.testing.assert_allclose(merged(manifest, handout, cohort, clipping), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("clip_norm", [0.05, 3.0])
@pytest.mark.parametrize("gone", range(6))
def test_no_device_moves_the_merge_by_more_than_its_part(manifest, cohort, clip_norm, gone):
    handout, clipping = adapter(Layout.of(manifest), 4, 1), Clipping(clip_norm=clip_norm, cohort_size=6)
    without = [each for at, each in enumerate(cohort) if at != gone]
    moved = merged(manifest, handout, cohort, clipping) - merged(manifest, handout, without, clipping)
    assert np.linalg.norm(moved) <= clip_norm / 6 * (1 + 1e-6)


def test_examples_that_a_device_claims_to_have_change_nothing(manifest):
    handout, clipping = adapter(Layout.of(manifest), 4, 1), Clipping(clip_norm=1.0, cohort_size=2)
    few, many = (
        [update(manifest, "a", 2, examples=count), update(manifest, "b", 2)] for count in (1, 10**9)
    )  # fmt: skip
    assert np.array_equal(merged(manifest, handout, few, clipping), merged(manifest, handout, many, clipping))


def test_an_update_that_does_not_fit_is_refused_by_name(manifest):
    handout = adapter(Layout.of(manifest), 1, 1)
    with pytest.raises(MergeError, match="update of 'a'"):
        update_norms([update(manifest, "a", 3)], manifest, handout)


def test_norms_are_found_with_one_thread_whatever_the_process_has(manifest):
    """With another number the last bits are others, and an offline recompute would not meet the version's."""
    modules_alone = replace(manifest, dense=())
    given, seen = update(modules_alone, "a", 2), []
    layout, codec = Layout.of(modules_alone), Codec.FP32
    data = memoryview(layout.encode(given.tensors, codec))

    def read():
        seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return data

    stored = replace(given, tensors=EncodedAdapter(layout=layout, read=read, rank=2, codec=codec))
    with threadpool_limits(2):
        update_norms([stored], modules_alone, adapter(layout, 2, seed=1))
    assert seen[-1] == 1

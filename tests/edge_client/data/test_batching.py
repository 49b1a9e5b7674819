import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_client.data.batching import collate, epoch_batches, in_order, training_batches
from edge_client.data.tasks import Encoded
from protocol.assignment import LocalTraining

lengths = st.lists(st.integers(1, 200), min_size=1, max_size=300)
sizes = st.integers(1, 20)


@given(lengths, sizes, st.integers(0, 9))
def test_an_epoch_holds_every_example_once(tokens, size, seed):
    batches = epoch_batches(tokens, size, np.random.default_rng(seed))
    assert sorted(np.concatenate(batches)) == list(range(len(tokens)))
    assert len(batches) == math.ceil(len(tokens) / size)
    assert sorted(len(batch) for batch in batches)[1:] == [size] * (len(batches) - 1)


@given(lengths, sizes, st.floats(0.1, 3.0), st.integers(0, 9))
def test_training_has_as_many_batches_as_steps_and_the_seed_decides_them(tokens, size, epochs, seed):
    steps = LocalTraining(batch_size=size, epochs=epochs).steps(len(tokens))
    first, second = (list(training_batches(tokens, size, steps, seed)) for _ in range(2))
    assert len(first) == steps
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_two_seeds_give_two_orders():
    first, second = (np.concatenate(list(training_batches([5] * 50, 4, 13, seed))) for seed in (1, 2))
    assert not np.array_equal(first, second)


def test_batches_of_like_length_waste_little_padding():
    tokens = np.random.default_rng(0).integers(5, 120, 512)
    padded = sum(tokens[batch].max() * len(batch) for batch in epoch_batches(tokens, 16, np.random.default_rng(1)))
    random = sum(tokens[at : at + 16].max() * 16 for at in range(0, 512, 16))
    assert padded < 1.12 * tokens.sum() < 0.7 * random


@given(lengths, sizes)
def test_evaluation_sees_every_example_once_longest_first(tokens, size):
    batches = in_order(tokens, size)
    assert sorted(np.concatenate(batches)) == list(range(len(tokens)))
    ordered = [tokens[index] for batch in batches for index in batch]
    assert ordered == sorted(tokens, reverse=True)


def test_padding_goes_right_and_is_masked():
    batch = collate([Encoded([5, 6, 7], [0, 0, 1]), Encoded([8], [0])], 9, torch.device("cpu"), with_types=True)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1], [0, 0, 0]]


def test_token_types_are_left_out_for_a_model_that_does_not_take_them():
    batch = collate([Encoded([5], [0])], 9, torch.device("cpu"), with_types=False)
    assert sorted(batch) == ["attention_mask", "input_ids"]

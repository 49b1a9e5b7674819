"""A bottleneck in blocks is one bottleneck, frozen blocks included; as it is made, it does nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.methods.bottleneck import ACTIVATIONS, Bottleneck, install

CPU = torch.device("cpu")
HIDDEN = 6


def filled(blocks, activation="gelu"):
    bottleneck = Bottleneck(HIDDEN, blocks, activation, CPU)
    generator = torch.Generator().manual_seed(sum(blocks))
    for parameter in bottleneck.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return bottleneck


def whole(bottleneck, activation, states):
    """The textbook's bottleneck of all units together, in float64."""
    blocks, first = bottleneck.blocks, bottleneck.blocks[0]
    down = torch.cat([block.down.weight for block in blocks]).double()
    bias = torch.cat([block.down.bias for block in blocks]).double()
    up = torch.cat([block.up.weight for block in blocks], dim=1).double()
    return states + ACTIVATIONS[activation](states @ down.T + bias) @ up.T + first.up.bias.double()


@settings(max_examples=20)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.sampled_from(sorted(ACTIVATIONS)))
def test_blocks_are_one_bottleneck_of_all_units_together(blocks, activation):
    bottleneck = filled(blocks, activation)
    states = torch.randn(3, 2, HIDDEN, generator=torch.Generator().manual_seed(0))
    expected = whole(bottleneck, activation, states.double())
    torch.testing.assert_close(bottleneck(states).double(), expected, rtol=1e-4, atol=1e-4)
    units = sum(blocks)
    assert sum(p.numel() for p in bottleneck.parameters()) == 2 * units * HIDDEN + units + HIDDEN


def test_a_new_one_is_the_identity_and_draws_no_random_numbers():
    before = torch.get_rng_state()
    bottleneck = Bottleneck(HIDDEN, (2, 3), "silu", CPU)
    assert torch.equal(before, torch.get_rng_state())
    assert not any(parameter.requires_grad for parameter in bottleneck.parameters())
    for dtype in (torch.float32, torch.bfloat16):
        states = torch.randn(4, HIDDEN).to(dtype)
        assert torch.equal(bottleneck(states), states)


def test_states_of_another_precision_are_computed_in_fp32():
    bottleneck = filled((2, 3))
    states = torch.randn(4, HIDDEN).to(torch.bfloat16)
    found = bottleneck(states)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, bottleneck(states.float()).to(torch.bfloat16))


def test_a_frozen_block_has_no_gradient_and_lets_its_inputs_through():
    bottleneck, states = filled((2, 3)), torch.randn(4, HIDDEN, requires_grad=True)
    bottleneck.blocks[0].requires_grad_(True)
    bottleneck(states).pow(2).sum().backward()
    found = states.grad
    assert all(parameter.grad is None for parameter in bottleneck.blocks[1].parameters())
    assert all(parameter.grad.any() for parameter in bottleneck.blocks[0].parameters())
    trained = filled((2, 3)).requires_grad_(True)
    again = states.detach().requires_grad_(True)
    trained(again).pow(2).sum().backward()
    torch.testing.assert_close(found, again.grad)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_what_a_projection_gives_goes_through_its_adapter(activation):
    projection, bottleneck = torch.nn.Linear(4, HIDDEN), filled((2,), activation)
    names, states = set(projection.state_dict()), torch.randn(3, 4)
    before = projection(states)
    install(projection, bottleneck)
    torch.testing.assert_close(projection(states), bottleneck(before))
    assert names <= set(projection.state_dict())

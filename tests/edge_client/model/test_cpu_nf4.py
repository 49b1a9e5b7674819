"""4-bit layers on a CPU against the NF4 code book, at widths of every kind."""

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import get_4bit_type
from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor, nn

from edge_client.model.cpu_nf4 import dequantise, mend_cpu_nf4

SHAPES = [(64, 64), (48, 48), (80, 48), (24, 80), (5, 100), (7, 10), (3, 7), (33, 65)]


def quantised(out_features: int, in_features: int, *, bias: bool, double: bool, dtype=torch.float32) -> Linear4bit:
    torch.manual_seed(0)
    exact = nn.Linear(in_features, out_features, bias=bias)
    exact.weight.data *= torch.rand(out_features, 1) * 3  # blocks whose maxima differ, so that a wrong one shows
    layer = Linear4bit(
        in_features, out_features, bias=bias, compute_dtype=dtype, quant_type="nf4", compress_statistics=double
    )
    layer.load_state_dict(exact.state_dict())
    layer.exact = exact.weight.data
    layer = layer.to("cpu")
    mend_cpu_nf4(nn.Sequential(layer))
    return layer


def nearest_code(weight: Tensor) -> Tensor:
    """The definition: blocks of 64 along the flattened weight, scaled by their maximum (arXiv:2305.14314, § 3)."""
    flat = nn.functional.pad(weight.reshape(-1), (0, -weight.numel() % 64)).reshape(-1, 64)
    scale, code = flat.abs().amax(1, keepdim=True), get_4bit_type("nf4", device="cpu")
    found = code[(flat / scale.clamp(min=1e-30)).unsqueeze(-1).sub(code).abs().argmin(-1)] * scale
    return found.reshape(-1)[: weight.numel()].reshape(weight.shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_weight_is_what_the_code_book_says(shape):
    layer = quantised(*shape, bias=False, double=False)
    found = dequantise(layer.weight.data, layer.weight.quant_state, torch.float32)
    torch.testing.assert_close(found, nearest_code(layer.exact))


@pytest.mark.parametrize("shape", SHAPES)
def test_doubly_quantised_maxima_cost_little(shape):
    layer = quantised(*shape, bias=False, double=True)
    found = dequantise(layer.weight.data, layer.weight.quant_state, torch.float32)
    expected = nearest_code(layer.exact)
    assert torch.norm(found - expected) < 0.02 * torch.norm(expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_are_those_of_that_weight(shape, bias):
    layer = quantised(*shape, bias=bias, double=False)
    weight = nearest_code(layer.exact).requires_grad_(False)
    values = torch.randn(2, 3, shape[1], requires_grad=True)
    twin = values.detach().clone().requires_grad_(True)
    twin_bias = layer.bias.detach().clone().requires_grad_(True) if bias else None
    found, expected = layer(values), nn.functional.linear(twin, weight, twin_bias)
    torch.testing.assert_close(found, expected)
    (found**2).sum().backward()
    (expected**2).sum().backward()
    torch.testing.assert_close(values.grad, twin.grad)
    if bias:
        torch.testing.assert_close(layer.bias.grad, twin_bias.grad)


def test_evaluation_changes_nothing_where_the_cpu_has_avx512_bf16(monkeypatch):
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    layer = quantised(64, 64, bias=False, double=False)
    packed = layer.weight.data.clone()
    with torch.no_grad():
        layer.eval()(torch.randn(2, 64))
    assert torch.equal(layer.weight.data, packed)


def test_bf16_computes_in_bf16_and_answers_in_the_inputs_dtype():
    layer = quantised(48, 48, bias=True, double=False, dtype=torch.bfloat16)
    values = torch.randn(4, 48)
    expected = nn.functional.linear(values, nearest_code(layer.exact), layer.bias.float())
    found = layer(values)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)

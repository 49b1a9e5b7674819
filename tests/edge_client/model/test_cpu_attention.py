"""Attention in bf16 on a CPU: what it computes is what fp32 does, and only where gradients are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from transformers.integrations import sdpa_attention

from edge_client.model import cpu_attention
from edge_client.model.cpu_attention import mend_cpu_attention

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 0, 0, 0]])
MASK = (TOKENS != 0).long()


@pytest.fixture(params=["tiny_bert", "tiny_llama", "tiny_gpt2"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def load(folder: Path, dtype: torch.dtype, implementation: str = "sdpa") -> transformers.PreTrainedModel:
    model = transformers.AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation=implementation)
    return model.eval()  # type: ignore[no-any-return]


def gradients(model: transformers.PreTrainedModel) -> Tensor:
    """Of a loss that asks for every state of every text, for the embeddings of the tokens."""
    embedded = model.get_input_embeddings()(TOKENS).detach().requires_grad_(True)
    states = model(inputs_embeds=embedded, attention_mask=MASK).last_hidden_state.float()
    weights = torch.linspace(-1.0, 1.0, states.numel()).reshape(states.shape) * MASK.unsqueeze(-1)
    (states * weights).sum().backward()
    assert embedded.grad is not None
    return embedded.grad.float()


def test_gradients_are_as_near_to_those_in_fp32_as_eager_attention_brings_them(folder: Path) -> None:
    exact, eager = gradients(load(folder, torch.float32)), gradients(load(folder, torch.bfloat16, "eager"))
    model = load(folder, torch.bfloat16)
    mend_cpu_attention(model)
    assert model.config._attn_implementation != "sdpa"
    found = gradients(model)
    assert torch.norm(found - exact) <= 1.5 * torch.norm(eager - exact) + 1e-3 * torch.norm(exact)
    assert torch.norm(found - exact) < 0.05 * torch.norm(exact)


def test_it_is_in_fp32_where_gradients_are_asked_for_and_nowhere_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []

    def spy(module: object, query: Tensor, *rest: object, **options: object) -> tuple[Tensor, None]:
        seen.append(query.dtype)
        return sdpa_attention.sdpa_attention_forward(module, query, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(cpu_attention, "sdpa_attention_forward", spy)
    model = load(folder, torch.bfloat16)
    mend_cpu_attention(model)
    gradients(model)
    assert set(seen) == {torch.float32}
    seen.clear()
    with torch.no_grad():
        model(input_ids=TOKENS, attention_mask=MASK)
    assert set(seen) == {torch.bfloat16}


def test_an_evaluation_gives_the_bits_of_the_library(folder: Path) -> None:
    plain, mended = load(folder, torch.bfloat16), load(folder, torch.bfloat16)
    mend_cpu_attention(mended)
    with torch.no_grad():
        found = [model(input_ids=TOKENS, attention_mask=MASK).last_hidden_state for model in (plain, mended)]
    assert torch.equal(*found)


@pytest.mark.parametrize(("dtype", "implementation"), [(torch.float32, "sdpa"), (torch.bfloat16, "eager")])
def test_what_is_fast_or_chosen_otherwise_stays(folder: Path, dtype: torch.dtype, implementation: str) -> None:
    model = load(folder, dtype, implementation)
    mend_cpu_attention(model)
    assert model.config._attn_implementation == implementation

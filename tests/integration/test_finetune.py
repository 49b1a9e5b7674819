"""The whole product: quantised bases, mixed ranks, α and rsLoRA, a daemon and devices in processes of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from aggregator.merge import GlobalState
from aggregator.store.home import Home
from aggregator.store.journal import Journal
from aggregator.store.objects import ObjectStore
from edge_client.model.manifest_writer import write_manifest
from protocol.manifest import Task, TaskKind

TEXTS = ["w1 good w2", "bad w3 w4 w5", "a good bad film", "no w9"]


def write_rows(path: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(24):
        label = str(rng.choice(["good", "bad"]))
        words = [f"w{i}" for i in rng.integers(0, 50, rng.integers(2, 9))]
        words.insert(int(rng.integers(0, len(words))), label)
        rows.append({"sentence": " ".join(words), "label": label})
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def outputs(model: torch.nn.Module, folder: Path) -> np.ndarray:
    """Last hidden states and logits, flat."""
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model.eval()(**tokens, output_hidden_states=True)
    return torch.cat([found.hidden_states[-1].flatten(), found.logits.flatten()]).numpy()


def plain_base(folder: Path) -> torch.nn.Module:
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)


def tuned_by_hand(folder: Path, home: Home, rank: int) -> torch.nn.Module:
    """The unquantised base with the aggregator's exact state, cut to a rank, added to its weights."""
    manifest, base = home.manifest(), plain_base(folder)
    with Journal(home.journal) as journal:
        stored = ObjectStore(home.objects).view(journal.versions()[-1].state_digest)
    state = GlobalState.from_bytes(bytes(stored), manifest)
    with torch.no_grad():
        for name, module in state.low_rank.items():
            cut = module.svd.truncate(rank)
            base.get_submodule(name).weight += torch.from_numpy((cut.U * cut.S) @ cut.Vt).float()
        for tensor in manifest.dense:
            start = tensor.initializer.values(tensor.shape) if tensor.initializer else 0.0
            base.get_parameter(tensor.name).copy_(torch.from_numpy(start + state.dense[tensor.name]))
    return base


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_devices_of_mixed_ranks_and_precisions_tune_one_model_that_plain_peft_loads(
    serve: Callable[..., Any], join: Callable[..., Any], command: Callable[..., Any], tiny_bert: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "manifest.json"
    task = Task(kind=TaskKind.CLASSIFICATION, labels=("good", "bad"), max_length=32)
    manifest.write_bytes(write_manifest(tiny_bert, task, rank_max=16).to_json())
    training = {"learning_rate": 0.02, "epochs": 4, "batch_size": 8, "handout_codec": "fp32"}
    daemon = serve(manifest, cohort_size=3, rounds=2, default_rank=4, **training)
    kinds: list[dict[str, Any]] = [
        {"quantization": "nf4", "rank": 2, "lora_alpha": 32},
        {"quantization": "int8", "use_rslora": True, "lora_alpha": 4},
        {"quantization": "fp32", "rank": 16},
    ]
    devices = [
        join(
            daemon.invite(number),
            number,
            model=str(tiny_bert),
            data=str(write_rows(tmp_path / f"{number}.jsonl", number)),
            texts=TEXTS,
            **kind,
        )
        for number, kind in enumerate(kinds)
    ]
    results = [device.result() for device in devices]
    assert [result["rank"] for result in results] == [2, 4, 16]
    assert all(result["rounds"] == [[1, True], [2, True]] for result in results)
    assert daemon.stop() == 0
    for rank in (2, 16):
        adapter = tmp_path / f"rank-{rank}"
        command("aggregator.cli", "export", daemon.home, "--rank", rank, "--out", adapter)
        exported = outputs(peft.PeftModel.from_pretrained(plain_base(tiny_bert), adapter), tiny_bert)
        by_hand = outputs(tuned_by_hand(tiny_bert, Home(daemon.home), rank), tiny_bert)
        np.testing.assert_allclose(exported, by_hand, atol=2e-5)
    np.testing.assert_allclose(exported, results[2]["outputs"], atol=2e-5)
    # The adapter must say something, or equal outputs would prove nothing.
    assert np.abs(exported - outputs(plain_base(tiny_bert), tiny_bert)).max() > 0.05


@pytest.mark.gpu
def test_the_whole_flow_on_a_gpu_with_a_quantised_llama(
    serve: Callable[..., Any], join: Callable[..., Any], command: Callable[..., Any], tiny_llama: Path, tmp_path: Path
) -> None:
    assert torch.cuda.is_available(), "run this where a CUDA device is at hand"
    manifest = tmp_path / "manifest.json"
    described = ("--model", tiny_llama, "--task", "causal-lm", "--max_length", 32)
    command("edge_client.cli", "manifest", *described, "--rank_max", 16, "--out", manifest)
    daemon = serve(manifest, cohort_size=3, rounds=2, default_rank=4, learning_rate=0.01, batch_size=4)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"prompt": f"w{i} a", "answer": f"b w{i}"}) for i in range(16)))
    kinds = [{"quantization": "nf4", "rank": 4}, {"quantization": "int8", "rank": 16}, {"quantization": "bf16"}]
    devices = [
        join(daemon.invite(number), number, model=str(tiny_llama), data=str(rows), device="cuda", **kind)
        for number, kind in enumerate(kinds)
    ]
    assert [device.result()["rounds"] for device in devices] == [[[1, True], [2, True]]] * 3
    assert daemon.stop() == 0

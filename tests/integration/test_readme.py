"""The README's code, run as it stands: the three ways of use, and the daemon's commands."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.merge import ClientUpdate, GlobalState, make_handout
from benchmarks.simulation.manifests import toy_manifest
from edge_client.model.manifest_writer import write_manifest
from protocol.manifest import Task, TaskKind
from protocol.payload import Layout

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
PROGRAMS = {"tributary-client": "edge_client.cli", "tributary-aggregator": "aggregator.cli"}

SFT_TRAINER = """
import torch, transformers, trl
from datasets import Dataset
model = transformers.AutoModelForCausalLM.from_pretrained("my-llama")
data = Dataset.from_list([{"text": f"w{i} a good film w{i + 1}"} for i in range(8)])
config = trl.SFTConfig(output_dir="out", report_to=[], per_device_train_batch_size=4, use_cpu=True, max_length=16)
tokenizer = transformers.AutoTokenizer.from_pretrained("my-llama", pad_token="[PAD]")
trainer = trl.SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer)
"""


@pytest.fixture
def work(tmp_path: Path, tiny_bert: Path, tiny_llama: Path) -> Path:
    """A user's folder with what the README speaks of."""
    shutil.copytree(tiny_bert, tmp_path / "my-encoder")
    shutil.copytree(tiny_llama, tmp_path / "my-llama")
    rows = [{"sentence": f"w{i} film", "label": "pos" if i % 2 else "neg"} for i in range(8)]
    (tmp_path / "reviews.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def run_python(code: str, folder: Path, environment: Callable[..., dict[str, str]]) -> str:
    extra = environment(XDG_DATA_HOME=str(folder / "state"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=extra, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def served_ticket(serve: Callable[..., Any], work: Path, model: str, task: Task) -> None:
    manifest = work / "m.json"
    manifest.write_bytes(write_manifest(work / model, task).to_json())
    daemon = serve(manifest, cohort_size=1, rounds=1)
    shutil.move(daemon.invite(0), work / "home.ticket")


def test_the_first_way_embeds_a_device_in_an_app(
    serve: Callable[..., Any], environment: Callable[..., Any], work: Path
) -> None:
    task = Task(kind=TaskKind.CLASSIFICATION, labels=("neg", "pos"), max_length=16)
    served_ticket(serve, work, "my-encoder", task)
    said = run_python(PYTHON[0] + "\nprint(type(client.model).__name__)", work, environment)
    assert "PeftModel" in said


def test_the_second_way_federates_an_sft_trainer(
    serve: Callable[..., Any], environment: Callable[..., Any], work: Path
) -> None:
    served_ticket(serve, work, "my-llama", Task(kind=TaskKind.CAUSAL_LM, max_length=16))
    said = run_python(SFT_TRAINER + PYTHON[1] + "\nprint(type(trainer.model).__name__)", work, environment)
    assert "PeftModel" in said


def test_the_third_way_merges_without_any_federation() -> None:
    manifest = toy_manifest(rank_max=4)
    handout = make_handout(GlobalState.zeros(manifest), manifest, slots=4, seed=0)
    change = Layout.of(manifest).zeros(2)
    change.slots[:] = np.random.default_rng(0).standard_normal(change.slots.shape) * 0.1
    updates = [ClientUpdate(client="a", num_examples=3, rank=2, tensors=change)]
    names: dict[str, Any] = {"manifest": manifest, "handout": handout, "updates": updates}
    exec(PYTHON[2], names)
    assert names["report"].clients == 1
    assert all(module.svd.rank > 0 for module in names["state"].low_rank.values())


def test_the_daemons_commands_lead_from_a_model_to_a_peft_folder(
    environment: Callable[..., dict[str, str]], work: Path
) -> None:
    script = next(block for block in SHELL if "tributary-aggregator init" in block)
    script = script.replace("--rounds 20 --cohort_size 4", "--rounds 1 --cohort_size 1 --default_rank 4")
    extra = environment(XDG_DATA_HOME=str(work / "state"))
    daemon = None
    try:
        for line in script.splitlines():
            program, *arguments = shlex.split(line, comments=True)
            call = [sys.executable, "-m", PROGRAMS[program], *arguments]
            if arguments[0] == "serve":
                call += ["--endpoint", "tcp://127.0.0.1:0"]
                daemon = subprocess.Popen(call, cwd=work, env=extra, stdout=subprocess.PIPE, text=True)
                assert "serving" in daemon.stdout.readline()
                continue
            done = subprocess.run(call, cwd=work, env=extra, capture_output=True, text=True, check=False, timeout=100)
            assert done.returncode == 0, f"{line}\n{done.stderr}"
    finally:
        if daemon is not None:
            daemon.terminate()
            daemon.communicate(timeout=60)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in (work / "adapter").iterdir()}

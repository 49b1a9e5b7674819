"""Loading an exported run: what does not belong together is told apart, and nothing half written is left."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import transformers

from edge_client import BaseModelError, ConfigError, load_exported
from edge_client.cli import main
from edge_client.exported import save_merged
from edge_client.methods.full import Full
from edge_client.methods.head import Head
from edge_client.model.manifest_writer import write_manifest
from protocol.exported import ADAPTER_FILE, MANIFEST_FILE, ExportedAdapter
from protocol.manifest import Manifest, Pooling, Quantization, Task, TaskKind
from protocol.payload import Layout

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LABELS = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"))


@pytest.fixture
def manifest(tiny_bert: Path) -> Manifest:
    return write_manifest(tiny_bert, LABELS, method=Head())


@pytest.fixture
def exported(tmp_path: Path) -> Callable[[Manifest], Path]:
    def write(manifest: Manifest) -> Path:
        folder = tmp_path / "exported"
        folder.mkdir()
        for name, data in ExportedAdapter(manifest, Layout.of(manifest).zeros(2)).to_files().items():
            (folder / name).write_bytes(data)
        return folder

    return write


def test_the_head_of_a_pooled_base_is_part_of_the_task_model(tiny_bert, exported) -> None:
    manifest = write_manifest(tiny_bert, replace(LABELS, pooling=Pooling.MEAN), method=Head())
    loaded = load_exported(exported(manifest), tiny_bert, device="cpu")
    initial = manifest.dense[0].initializer.values(manifest.dense[0].shape)
    np.testing.assert_array_equal(loaded.task_model.head.weight.numpy(), initial)
    assert loaded.manifest == manifest
    assert loaded.processor("w1").input_ids


def test_another_base_is_refused(tiny_bert, tiny_llama, exported, manifest, tmp_path) -> None:
    folder = exported(manifest)
    for merged in (False, True):
        with pytest.raises(BaseModelError, match=r"fingerprint .*, the run tunes tiny-bert with .*: use that model"):
            load_exported(folder, tiny_llama, merged=merged)
    with pytest.raises(BaseModelError, match="neither a folder nor a model"):
        save_merged(folder, tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_method_says_how_the_base_can_be_held_and_not_the_run(tiny_bert, exported, manifest) -> None:
    nf4_alone = replace(manifest.base, quantizations=(Quantization.NF4,))
    assert load_exported(exported(replace(manifest, base=nf4_alone)), tiny_bert, device="cpu", merged=True)


def test_a_base_that_the_method_cannot_tune_is_refused(tiny_bert, exported) -> None:
    folder = exported(write_manifest(tiny_bert, LABELS, method=Full()))
    with pytest.raises(ConfigError, match="the run allows bf16, fp32, this device is set to nf4"):
        load_exported(folder, tiny_bert, quantization="nf4")
    with pytest.raises(ConfigError, match="expected one of nf4, int8, bf16, fp32, got 'fp8'"):
        load_exported(folder, tiny_bert, quantization="fp8")


def test_a_quantised_base_takes_no_result_into_its_weights(tiny_bert, exported, manifest) -> None:
    with pytest.raises(ConfigError, match="held in nf4 takes no result into its weights: merge in fp32"):
        load_exported(exported(manifest), tiny_bert, quantization="nf4", merged=True)


def test_a_method_of_a_later_version_is_refused(tiny_bert, exported, manifest) -> None:
    with pytest.raises(ConfigError, match=r"the run tunes by 'telepathy' .*: upgrade tributary-fl"):
        load_exported(exported(replace(manifest, method="telepathy")), tiny_bert)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "not an exported run .*manifest.json.*: name what `tributary-aggregator export` wrote"),
        ({"adapter_config.json": b"{}"}, r"is a PEFT folder: peft\.PeftModel\.from_pretrained.* or export .*--format"),
        ({MANIFEST_FILE: b"{}"}, r"not an exported run .*adapter\.safetensors"),
        ({MANIFEST_FILE: b"{}", ADAPTER_FILE: b""}, "damaged, or of another version .*: export the run again"),
        ({MANIFEST_FILE: b"\xff", ADAPTER_FILE: b""}, "damaged, or of another version"),
    ],
)
def test_a_folder_that_is_none_is_refused(tmp_path, files, reason) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=reason):
        load_exported(tmp_path, "base")


def test_tensors_of_another_run_are_refused(tiny_bert, exported, manifest) -> None:
    folder = exported(manifest)
    safetensors.numpy.save_file({"classifier.weight": np.zeros((2, 48), np.float32)}, folder / ADAPTER_FILE)
    with pytest.raises(ConfigError, match=r"adapter\.safetensors does not fit manifest\.json: .*'classifier"):
        load_exported(folder, tiny_bert)


def test_a_checkpoint_is_not_written_over_something(tiny_bert, exported, manifest, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="is not an empty folder: choose another"):
        save_merged(exported(manifest), tiny_bert, out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_the_command_writes_a_checkpoint(tiny_bert, exported, manifest, tmp_path, capsys) -> None:
    assert main(["merge-export", str(exported(manifest)), str(tiny_bert), str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint"] == str(tmp_path / "out")
    head = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").classifier
    np.testing.assert_array_equal(head.weight.detach().numpy(), manifest.dense[0].initializer.values((2, 48)))


def test_a_disk_that_is_full_leaves_nothing_behind(tiny_bert, exported, manifest, tmp_path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    folder = exported(manifest)
    monkeypatch.setattr(transformers.PreTrainedTokenizerBase, "save_pretrained", full)
    with pytest.raises(ConfigError, match=r"out cannot be written: .*No space left"):
        save_merged(folder, tiny_bert, tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []

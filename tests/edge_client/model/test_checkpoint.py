import json
import shutil

import pytest
import safetensors
import safetensors.torch
import torch
import transformers

from edge_client.errors import BaseModelError
from edge_client.model.checkpoint import Checkpoint
from protocol.fingerprint import fingerprint


@pytest.fixture
def copy(tiny_bert, tmp_path):
    return shutil.copytree(tiny_bert, tmp_path / "copy")


def test_the_fingerprint_is_that_of_the_tensors_in_the_file(tiny_bert):
    found = dict(safetensors.deserialize((tiny_bert / "model.safetensors").read_bytes()))
    expected = fingerprint((n, t["dtype"], tuple(t["shape"]), bytes(t["data"])) for n, t in found.items())
    assert Checkpoint.find(tiny_bert).fingerprint() == expected


def test_a_sharded_checkpoint_has_the_same_fingerprint(tiny_bert, tmp_path):
    model = transformers.BertModel.from_pretrained(tiny_bert)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert Checkpoint.find(tmp_path).fingerprint() == Checkpoint.find(tiny_bert).fingerprint()


def test_one_changed_value_changes_the_fingerprint(tiny_bert, copy):
    tensors = safetensors.torch.load_file(copy / "model.safetensors")
    tensors["embeddings.LayerNorm.bias"][0] += 1e-3
    safetensors.torch.save_file(tensors, copy / "model.safetensors")
    assert Checkpoint.find(copy).fingerprint() != Checkpoint.find(tiny_bert).fingerprint()


def test_bf16_tensors_can_be_read(copy):
    tensors = {
        name: t.to(torch.bfloat16) for name, t in safetensors.torch.load_file(copy / "model.safetensors").items()
    }
    safetensors.torch.save_file(tensors, copy / "model.safetensors")
    assert len(Checkpoint.find(copy).fingerprint()) == 64


def test_pickled_weights_are_refused_with_the_way_out(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"only pickled \*\.bin weights.*save_pretrained"):
        Checkpoint.find(copy)


def test_a_missing_shard_is_named(copy):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BaseModelError, match="model-00001-of-00002"):
        Checkpoint.find(copy)


def test_weights_that_are_quantised_already_are_refused(copy):
    config = json.loads((copy / "config.json").read_text()) | {"quantization_config": {"quant_method": "bitsandbytes"}}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match="quantised already"):
        Checkpoint.find(copy)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, (8).to_bytes(8, "little") + b"not json", bytes(8)])
def test_a_broken_weight_file_is_named(content, copy):
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(BaseModelError, match=r"model\.safetensors"):
        Checkpoint.find(copy).fingerprint()


def test_a_file_that_was_cut_off_is_named(copy):
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[:-4])
    with pytest.raises(BaseModelError, match="incomplete"):
        Checkpoint.find(copy).fingerprint()


def test_what_is_neither_folder_nor_hub_id_is_refused(tmp_path):
    with pytest.raises(BaseModelError, match="neither a folder nor a model"):
        Checkpoint.find(tmp_path / "missing")


def test_the_tokenizer_digest_follows_the_vocabulary_only(tiny_bert, copy):
    (copy / "tokenizer_config.json").write_text("{}")
    assert Checkpoint.find(copy).tokenizer_digest() == Checkpoint.find(tiny_bert).tokenizer_digest()
    (copy / "tokenizer.json").write_text("{}")
    assert Checkpoint.find(copy).tokenizer_digest() != Checkpoint.find(tiny_bert).tokenizer_digest()


def test_the_image_processor_digest_is_that_of_its_file(tiny_vit, tmp_path):
    folder = shutil.copytree(tiny_vit, tmp_path / "copy")
    assert Checkpoint.find(folder).image_processor_digest() == Checkpoint.find(tiny_vit).image_processor_digest()
    path = folder / "preprocessor_config.json"
    path.write_text(path.read_text().replace("0.5", "0.4", 1))
    assert Checkpoint.find(folder).image_processor_digest() != Checkpoint.find(tiny_vit).image_processor_digest()
    path.unlink()
    with pytest.raises(BaseModelError, match="expected an image processor"):
        Checkpoint.find(folder).image_processor_digest()


def test_a_folder_without_a_tokenizer_is_refused(copy):
    (copy / "tokenizer.json").unlink()
    with pytest.raises(BaseModelError, match="expected a tokenizer"):
        Checkpoint.find(copy).tokenizer_digest()

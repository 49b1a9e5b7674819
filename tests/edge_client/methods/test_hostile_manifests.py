"""What a manifest asks of a device is bounded before the device makes room for it."""

from dataclasses import replace

import pytest

from edge_client.errors import BaseModelError, ConfigError
from edge_client.methods import METHODS, read_method
from edge_client.model.manifest_writer import write_manifest
from edge_client.trainers.torch_trainer import TorchTrainer
from protocol.manifest import Manifest, Task, TaskKind

LABELS = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"), max_length=16)
PICTURES = Task(kind=TaskKind.IMAGE_CLASSIFICATION, labels=("no", "yes"))
TERA = 10**12


@pytest.fixture
def joined(request):
    """A device with a manifest that was honest until it was changed."""

    def join(fixture: str, method: str, **changed: object) -> None:
        task, folder = PICTURES if fixture == "tiny_vit" else LABELS, request.getfixturevalue(fixture)
        manifest = replace(write_manifest(folder, task, method=METHODS[method](), rank_max=4), **changed)
        TorchTrainer(folder, quantization="fp32").info(Manifest.from_json(manifest.to_json()))

    return join


@pytest.mark.parametrize(
    ("fixture", "method", "options", "named"),
    [
        ("tiny_bert", "prefix", {"length": TERA}, "length: expected .* 1 to 4096, got 1000000000000"),
        ("tiny_bert", "prefix", {"length": 1 << 61}, "length: expected .* 1 to 4096"),
        ("tiny_bert", "prompt", {"length": TERA}, "length: expected .* 1 to 4096"),
        ("tiny_vit", "vpt", {"length": TERA}, "length: expected .* 1 to 4096"),
        ("tiny_bert", "adapter", {"widths": (TERA,)}, "wider than its rank_max 4, got 1000000000000"),
    ],
)
def test_sizes_beyond_bounds_are_refused_before_memory_is_taken(joined, fixture, method, options, named):
    with pytest.raises(ConfigError, match=named):
        joined(fixture, method, method_options=options)


@pytest.mark.parametrize("name", ["prefix.999999", "prefix.-1", "prefix.01", "prefix", "config.hidden_size", "."])
def test_names_that_the_model_lacks_are_refused(joined, tiny_bert, name):
    dense = write_manifest(tiny_bert, LABELS, method=METHODS["prefix"](), rank_max=4).dense
    with pytest.raises(BaseModelError, match="which BertForSequenceClassification lacks"):
        joined("tiny_bert", "prefix", dense=(*dense, replace(dense[-1], name=name)))


@pytest.mark.parametrize(
    ("method", "options", "named"),
    [
        ("lora", {"target_modules": 5}, "target_modules: expected a tuple of names, got 5"),
        ("lora", {"target_modules": "query"}, "target_modules: expected a tuple of names, got 'query'"),
        ("lora", {"target_modules": (1, 2)}, "target_modules: expected a tuple of names"),
        ("adapter", {"activation": {}}, "activation: expected one of"),
        ("adapter", {"placement": {}}, "placement: expected one of"),
    ],
)
def test_settings_of_another_type_are_refused_by_name(method, options, named):
    with pytest.raises(ConfigError, match=named):
        read_method(method, options)

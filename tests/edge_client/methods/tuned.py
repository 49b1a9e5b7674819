"""A base model of random weights with a method's tensors in it, without a checkpoint on disk."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from torch import Tensor

from edge_client.methods import Method, Subject, Tuner
from edge_client.methods.scaling import LoraSettings
from edge_client.model.task_model import HEAD, TaskModel, head_outputs
from protocol.initializers import Distribution, Initializer
from protocol.manifest import BaseModel, DenseTensor, Manifest, Task, TaskKind
from protocol.payload import AdapterTensors, Layout

TEXT = Task(kind=TaskKind.CAUSAL_LM, max_length=12)
SIZES = {"vocab_size": 64, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
ENCODER = SIZES | {"intermediate_size": 80, "max_position_embeddings": 40}


def bert(kind: type[transformers.PreTrainedModel] = transformers.BertModel, **kwargs: bool) -> object:
    return built(lambda: kind(transformers.BertConfig(**ENCODER), **kwargs))


def roberta(kind: type[transformers.PreTrainedModel] = transformers.RobertaModel, **kwargs: bool) -> object:
    return built(lambda: kind(transformers.RobertaConfig(**ENCODER), **kwargs))


def llama(kind: type[transformers.PreTrainedModel] = transformers.LlamaForCausalLM) -> object:
    return built(lambda: kind(transformers.LlamaConfig(**ENCODER, num_key_value_heads=2)))


def gpt2(kind: type[transformers.PreTrainedModel] = transformers.GPT2LMHeadModel) -> object:
    return built(lambda: kind(transformers.GPT2Config(**SIZES, max_position_embeddings=40)))


def opt() -> object:
    """Its heads call the decoder past the model around it."""
    sizes = SIZES | {"ffn_dim": 80, "word_embed_proj_dim": 48, "max_position_embeddings": 40, "eos_token_id": 3}
    return built(lambda: transformers.OPTForCausalLM(transformers.OPTConfig(**sizes)))


def built(make: Callable[[], transformers.PreTrainedModel]) -> transformers.PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval().requires_grad_(False)


@dataclass(frozen=True)
class Tuned:
    """A model, what tunes it, and what was loaded last."""

    model: TaskModel
    tuner: Tuner
    manifest: Manifest
    handout: AdapterTensors

    @property
    def layout(self) -> Layout:
        return Layout.of(self.manifest)

    def loaded(self, name: str) -> Tensor:
        """The value of a tensor as the hand-out has it."""
        tensor = next(tensor for tensor in self.manifest.dense if tensor.name == name)
        assert tensor.initializer is not None
        return torch.from_numpy(tensor.initializer.values(tensor.shape) + self.handout.dense[name])


def tuned(backbone: transformers.PreTrainedModel, method: Method, task: Task = TEXT) -> Tuned:
    """The method on a model, with a hand-out of random offsets loaded."""
    subject = Subject(backbone=backbone, task=task, rank_max=1, head=(), seed=3)
    head = ()
    if head_outputs(task):
        zeros = Initializer(distribution=Distribution.ZEROS)
        shape = head_outputs(task), 48
        head = tuple(
            DenseTensor(name=f"{HEAD}.{part}", shape=size, initializer=zeros)
            for part, size in (("weight", shape), ("bias", shape[:1]))
        )
    manifest = Manifest(
        base=BaseModel(name="none", fingerprint="0" * 64, architecture="none", tokenizer_digest="0" * 64),
        task=task,
        rank_max=1,
        method=method.name,
        method_options=method.options,
        dense=(*head, *method.declare(subject).dense),
    )
    rng, layout = np.random.default_rng(5), Layout.of(manifest)
    dense = {each.name: (0.3 * rng.standard_normal(each.shape)).astype(np.float32) for each in layout.dense}
    handout = AdapterTensors(dense, layout.zeros(0).slots)
    model = TaskModel(backbone, task).eval()
    tuner = method.tuner(model, manifest, LoraSettings())
    tuner.load(handout, 1, layout)
    return Tuned(model, tuner, manifest, handout)


def batch(*lengths: int, types: bool = False) -> dict[str, Tensor]:
    """Texts of these lengths, of random words, padded on the right; with types, the second half is a second text."""
    generator = torch.Generator().manual_seed(0)
    shape = len(lengths), max(lengths)
    mask = torch.tensor([[int(at < length) for at in range(shape[1])] for length in lengths])
    ids = torch.randint(4, 64, shape, generator=generator) * mask
    found = {"input_ids": ids, "attention_mask": mask}
    if types:
        found["token_type_ids"] = (
            torch.tensor([[int(2 * at >= length) for at in range(shape[1])] for length in lengths]) * mask
        )
    return found

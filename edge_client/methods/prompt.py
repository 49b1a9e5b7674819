"""Prompt tuning: trained vectors before the embeddings of the text, a soft prompt.

The prompt goes through the body as the first ``length`` tokens of every text, of token type 0, and its states are cut
off where the body ends: heads, pooling and losses see the text's own tokens at their own places, so that the first of
them is still the text's first (``[CLS]``) and a mean is a mean over the text. A body that pools by itself is given the
text's states to pool.

PEFT's own models of prompt tuning leave the prompt's states in the output, drop token types in feature extraction and
let the first virtual token take the place of ``[CLS]``, so they are not used; the inputs are theirs (a test compares).

Reference: Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", 2021, arXiv:2104.08691, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from edge_client.errors import ConfigError
from edge_client.methods.dense import DenseTuner
from edge_client.methods.interface import Method, Subject, Trainables, Tuner
from edge_client.methods.virtual_tokens import body_of, check_length, check_subject, count_in, install, named_call
from protocol.initializers import Distribution, Initializer
from protocol.manifest import DenseTensor, Pooling, Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edge_client.methods.scaling import LoraSettings
    from edge_client.model.task_model import TaskModel
    from protocol.manifest import Manifest

__all__ = ["PROMPT", "Prompt"]

PROMPT = "prompt.embeddings"
"""The tensor, fp32 ``[length, embedding size]``."""
_INITIAL_SCALE = 0.02
"""Standard deviation of fresh vectors where the config names none for embeddings."""


@dataclass(frozen=True, kw_only=True)
class Prompt(Method):
    """Trained vectors before the input embeddings.

    Raises:
        ConfigError: The length is no number of tokens.
    """

    length: int = 20
    """Tokens."""

    name: ClassVar[str] = "prompt"
    quantizations: ClassVar[frozenset[Quantization]] = frozenset(Quantization)

    def __post_init__(self) -> None:
        check_length(self.name, self.length)

    def declare(self, subject: Subject) -> Trainables:
        """See :meth:`edge_client.methods.interface.Method.declare`."""
        check_subject(self.name, self.length, subject, "inputs_embeds")
        body = body_of(subject.backbone)
        if subject.task.pooling is Pooling.MODEL and isinstance(getattr(body, "pooler", None), nn.Linear):
            raise ConfigError(
                f"method 'prompt': {type(body).__name__} pools its first position, which the prompt has: use pooling "
                "'mean' or 'cls'"
            )
        scale = getattr(body.config, "initializer_range", None) or _INITIAL_SCALE
        shape = self.length, _words(body).shape[1]
        fresh = Initializer(distribution=Distribution.NORMAL, scale=scale, seed=subject.seed_of(PROMPT))
        return Trainables(dense=(DenseTensor(name=PROMPT, shape=shape, initializer=fresh),))

    def tuner(self, model: TaskModel, manifest: Manifest, lora: LoraSettings) -> Tuner:
        """See :meth:`edge_client.methods.interface.Method.tuner`."""
        del lora
        install(model.backbone, PROMPT.partition(".")[0], _SoftPrompt(body_of(model.backbone), self.length))
        return DenseTuner(model, manifest)


class _SoftPrompt(nn.Module):
    """The vectors, which every call of the body has before its text.

    Args:
        body: The transformer, without heads.
        length: Tokens.
    """

    def __init__(self, body: PreTrainedModel, length: int) -> None:
        super().__init__()
        words = _words(body)
        self.embeddings = nn.Parameter(torch.zeros(length, words.shape[1], device=words.device), requires_grad=False)
        self._inserted = 0
        body.register_forward_pre_hook(self._insert, with_kwargs=True)
        body.register_forward_hook(self._cut_output)
        pooler = getattr(body, "pooler", None)
        if pooler is not None and not isinstance(pooler, nn.Linear):
            pooler.register_forward_pre_hook(self._cut_input)

    def _insert(self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        call, length = named_call(body, args, kwargs), len(self.embeddings)
        cache = call.get("past_key_values")
        continued = cache is not None and cache.get_seq_length() > 0  # generation: the cache holds the prompt
        self._inserted = 0 if continued else length
        count_in(call, length)
        if not continued:
            self._prepend(body, call)
        return (), call

    def _prepend(self, body: Any, call: dict[str, Any]) -> None:
        texts = call.get("inputs_embeds")
        if texts is None:
            texts = body.get_input_embeddings()(call["input_ids"])
            call["input_ids"] = None
        batch, length = len(texts), len(self.embeddings)
        call["inputs_embeds"] = torch.cat((self.embeddings.to(texts.dtype).expand(batch, -1, -1), texts), dim=1)
        types, positions = call.get("token_type_ids"), call.get("position_ids")
        if types is not None:
            call["token_type_ids"] = torch.cat((types.new_zeros(len(types), length), types), dim=1)
        if positions is not None:
            own = torch.arange(length, device=positions.device).expand(len(positions), -1)
            call["position_ids"] = torch.cat((own, positions), dim=1)

    def _cut_output(self, body: Any, args: tuple[Any, ...], output: Any) -> None:
        output.last_hidden_state = output.last_hidden_state[:, self._inserted :]

    def _cut_input(self, pooler: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return args[0][:, self._inserted :], *args[1:]


def _words(body: PreTrainedModel) -> Tensor:
    """The body's embedding table, ``[vocabulary, embedding size]``."""
    embeddings: Any = body.get_input_embeddings()
    table: Tensor = embeddings.weight
    return table

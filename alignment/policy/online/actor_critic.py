"""The models of a training on its own answers in as little memory as their weights allow: policy, reference, critic.

With LoRA one trunk serves them all: the reference is the trunk with the adapter off (or with the frozen adapter that
training started from), and the critic is a head on the policy's hidden states. Without LoRA the reference is a frozen
copy. Nothing here computes logits over a whole response at once.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from peft import PeftModel
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from alignment.distributed.fsdp import one_pass, reshard, shard_frozen, shard_trained
from alignment.errors import StageError
from alignment.models.adapter_kinds.soft_prompt import SoftPromptModel
from alignment.models.adapters import copy_adapter
from alignment.models.families.head import HeadKind, head_kind, trunk_of
from alignment.models.prefix_sharing import one_call_a_pass, share_prefixes
from alignment.policy.online.batch import Tokens
from alignment.training.response_head import read_logits, read_tokens

Reference: TypeAlias = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Outputs:
    """Of every response token: (B, R) float32, 0 where masked out. ``entropy`` carries a gradient where the actor was
    asked for one; ``values`` are 0 where there is no value function."""

    logprobs: torch.Tensor
    values: torch.Tensor
    entropy: torch.Tensor


class Actor(nn.Module):
    """A policy in training, in evaluation mode: nothing in it is drawn at random.

    ``trained_entropy`` has its entropies carry a gradient, which costs a product with the head more.
    """

    def __init__(self, policy: Any, *, temperature: float, trained_entropy: bool = False) -> None:
        super().__init__()
        self.policy = policy.eval()
        self.temperature, self.trained_entropy, self.sharded = temperature, trained_entropy, False
        head_kind(base_of(policy))  # tried before anything counts its passes
        share_prefixes(base_of(policy))

    @property
    def device(self) -> torch.device:
        """Where its passes are made."""
        device: torch.device = self.policy.get_output_embeddings().weight.device
        return device

    def forward(self, tokens: Tokens) -> Outputs:
        """Log-probabilities at the sampling temperature, and entropies."""
        _states, logprobs, entropy = read(self.policy, tokens, self.temperature, trained_entropy=self.trained_entropy)
        scattered = tokens.scatter(logprobs)
        return Outputs(scattered, torch.zeros_like(scattered, requires_grad=False), tokens.scatter(entropy))

    def shard(self) -> None:
        """Has this worker keep a part of all weights: from now on all workers have to make each pass, at once."""
        for trunk in self.trunks():
            one_call_a_pass(trunk)
        for model in self.children():
            shard_trained(model)
        self.sharded = True

    def trainable(self) -> dict[str, nn.Parameter]:
        """What the optimizer changes, by name: this, and nothing else, is what a checkpoint must hold."""
        reshard(self)  # the optimizer's are the parts
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def trunks(self) -> list[Any]:
        """The models that are trained, without PEFT's wrapper."""
        return [base_of(self.policy)]

    def checkpoint_activations(self) -> None:
        """Recomputes each layer's activations in the backward pass, with dropout still off.

        Transformers does so only in layers in training mode, so the layers alone, not what is in them, are in it; and
        they only until their forward begins, where some (OPT, Falcon) apply dropout themselves.
        """
        for trunk in self.trunks():
            if not any(getattr(module, "gradient_checkpointing", False) for module in trunk.modules()):
                enable = getattr(trunk, "activation_checkpointing_enable", None)  # its name until transformers 5.17:
                (enable or trunk.gradient_checkpointing_enable)({"use_reentrant": False})
            for module in trunk.modules():
                if isinstance(module, GradientCheckpointingLayer) and not module.training:
                    module.training = True
                    module._gradient_checkpointing_func = _without_dropout(module, module._gradient_checkpointing_func)


class ActorCritic(Actor):
    """A policy and its value function.

    ``critic`` is a trunk of the value function's own, or None for a head on the policy's. The value head starts with
    zero weights, so that the first advantages are not noise (Huang et al. 2024 find it as good as any), and with the
    mean return as its bias: see :meth:`start_values`.
    """

    def __init__(self, policy: Any, *, critic: Any | None = None, temperature: float) -> None:
        super().__init__(policy, temperature=temperature)
        self.critic = None if critic is None else critic.eval()
        if critic is not None:
            share_prefixes(base_of(critic))
        weight = policy.get_output_embeddings().weight
        width = weight.shape[1] if critic is None else critic.config.get_text_config().hidden_size
        self.value_head = nn.Linear(width, 1, device=weight.device, dtype=torch.float32)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, tokens: Tokens) -> Outputs:
        """Log-probabilities at the sampling temperature, values and entropies; one pass through a shared trunk."""
        states, logprobs, entropy = read(self.policy, tokens, self.temperature)
        if self.critic is not None:
            states = tokens.states(hidden_states(self.critic, tokens.ids, tokens.ids_mask))
        values = self.value_head(states.float()).squeeze(-1)
        return Outputs(tokens.scatter(logprobs), tokens.scatter(values), tokens.scatter(entropy))

    @torch.no_grad()
    def start_values(self, mean: float) -> None:
        """Has every state be worth ``mean``, the first step's mean return.

        At 0 the value function would be wrong by the offset of the scores, and every answer a surprise at its last
        tokens, whatever it says (Yuan et al. 2025, "What's Behind PPO's Collapse in Long-CoT?").
        """
        reshard(self)
        self.value_head.bias.fill_(mean)

    def trunks(self) -> list[Any]:
        """The models that are trained, without PEFT's wrapper."""
        return [base_of(trunk) for trunk in (self.policy, self.critic) if trunk is not None]


def _without_dropout(layer: nn.Module, recompute: Callable[..., Any]) -> Callable[..., Any]:
    """``recompute(function, *arguments)`` where ``function``, the layer's forward, runs in evaluation mode."""

    def quiet(function: Callable[..., Any], *arguments: Any) -> Any:
        def forward(*inputs: Any) -> Any:
            layer.training = False
            try:
                return function(*inputs)
            finally:
                layer.training = True

        return recompute(forward, *arguments)

    return quiet


def reference_logprobs(model: Any, tokens: Tokens, *, temperature: float) -> torch.Tensor:
    """(B, R) log-probabilities of the responses under a frozen model."""
    _states, logprobs, _entropy = read(model, tokens, temperature)
    return tokens.scatter(logprobs)


def read(
    model: Any, tokens: Tokens, temperature: float, *, trained_entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the M response tokens: the states (M, D) that choose them, their log-probabilities and entropies (M,).

    Where logits do not follow from the last hidden states, the first are the logits (M, V) instead.
    """
    whole = head_kind(base_of(model)) == HeadKind.WHOLE
    return one_pass(model, _read_whole if whole else _read, tokens, temperature, trained_entropy)  # type: ignore[no-any-return]


def _read(
    model: Any, tokens: Tokens, temperature: float, trained_entropy: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    states, labels = tokens.states(hidden_states(model, tokens.ids, tokens.ids_mask)), tokens.labels[tokens.mask]
    read_head = read_tokens(base_of(model), states, labels, temperature=temperature, entropy_gradient=trained_entropy)
    return states, *read_head


def _read_whole(
    model: Any, tokens: Tokens, temperature: float, trained_entropy: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits = tokens.states(model(input_ids=tokens.ids, attention_mask=tokens.ids_mask, use_cache=False).logits)
    labels = tokens.labels[tokens.mask]
    return logits, *read_logits(logits, labels, temperature=temperature, entropy_gradient=trained_entropy)


def hidden_states(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The trunk's last hidden states (B, L, D) for right-padded ids (B, L); adapters act as they are set.

    With ``mask`` (B, L) what rows have in common is computed once, where the model allows it.
    """
    output = trunk_of(base_of(model))(input_ids=ids, attention_mask=mask, use_cache=False)
    return output.last_hidden_state  # type: ignore[no-any-return]


def check_head(model: Any) -> None:
    """Raises StageError where logits do not follow from the last hidden states."""
    if head_kind(base_of(model)) == HeadKind.WHOLE:
        raise StageError(f"{type(model).__name__} makes logits of more than hidden states; PPO here cannot train it")


def base_of(model: Any) -> Any:
    """The transformers model, without PEFT's wrapper."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def adapter_off(model: PeftModel) -> Reference:
    """The policy's own weights without its adapter: what a fresh adapter started from."""

    @contextmanager
    def reference() -> Iterator[Any]:
        with model.disable_adapter():
            yield model

    return reference


def frozen_adapter(model: PeftModel, folder: str) -> Reference:
    """The policy's trunk under the adapter in ``folder``: what an adapter that is trained further started from."""
    model.load_adapter(folder, adapter_name="reference", is_trainable=False)
    return _switched(model)


def _switched(model: PeftModel) -> Reference:
    model.set_adapter("default")

    @contextmanager
    def reference() -> Iterator[Any]:
        model.set_adapter("reference")
        try:
            yield model
        finally:
            model.set_adapter("default")

    return reference


def start_adapter(model: PeftModel) -> Reference:
    """The policy's trunk under a frozen copy of its adapter as it is now: for one that begins as another model than
    its base, such as virtual tokens."""
    model.add_adapter("reference", copy.copy(model.peft_config["default"]))
    copy_adapter(model, "reference")
    return _switched(model)


def frozen_copy(model: Any, *, sharded: bool = False) -> Reference:
    """A copy of all weights: where all of them are trained. Each of several workers holds a part where ``sharded``."""
    head_kind(base_of(model))  # tried while its weights are whole
    frozen = copy.deepcopy(model).requires_grad_(False).eval()
    share_prefixes(base_of(frozen))
    if sharded:
        one_call_a_pass(frozen)
        shard_frozen(frozen)

    @contextmanager
    def reference() -> Iterator[Any]:
        try:
            yield frozen
        finally:
            reshard(frozen)  # no backward pass follows, which would

    return reference


def reference_of(policy: Any, adapter: str | None, *, sharded: bool) -> Reference:
    """What a policy started from: ``adapter`` is the folder of the one that it started with, None for a fresh one."""
    if not isinstance(policy, PeftModel):
        return frozen_copy(policy, sharded=sharded)
    if isinstance(policy, SoftPromptModel):
        return start_adapter(policy)
    return adapter_off(policy) if adapter is None else frozen_adapter(policy, adapter)

"""TRL's fused language-model head, on the answers' tokens alone, and with the model's own logits.

TRL's trainers ask a patched model for log-probabilities instead of logits (``fused_lm_head=True``). Without Triton it
projects every position through the vocabulary, prompts and padding included, in float32, and knows some families'
caps and scales. Here only positions with a label are projected. Where logits are a plain product, the gradient is taken
in the same pass (:mod:`alignment.training.token_logprobs`); where a model does more, its own forward makes them, a
chunk of tokens at a time (:mod:`alignment.models.families.head`); and where even that cannot be, in one whole pass.
"""

import types
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint
from trl.trainer.utils import FusedCausalLMOutput

from alignment.models.families.head import HeadKind, head_kind, own_logits, own_output, trunk_of
from alignment.models.seq2seq.architecture import is_encoder_decoder
from alignment.models.seq2seq.passes import part_rows, target_logits
from alignment.training.token_logprobs import chunks, token_logprobs_and_entropy, token_statistics

IGNORED = -100


def add_response_head(model: Any, *, statistics: bool = True) -> None:
    """Replaces the head that TRL patched onto a causal model (under its PEFT wrapper, too), same inputs and outputs.

    Without ``statistics`` neither ``mean_logits`` nor ``is_top1`` is computed. The entropy has no gradient.

    The rows of an encoder-decoder are parted: its encoder reads what stands before the labels, its decoder writes them.

    The loss of a mixture of experts' routers is the model's own, too; a family that has none gives 0.
    """
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    options = _Options(1.0, statistics, False, head_kind(model))
    patched = model.forward

    def forward(
        self: Any,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Any = None,
        shift_labels: Any = None,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        if not fused_lm_head or labels is None or shift_labels is not None:
            known = {"labels": labels, "shift_labels": shift_labels, "num_items_in_batch": num_items_in_batch}
            return patched(*args, fused_lm_head=fused_lm_head, **known, **kwargs)
        kwargs["use_cache"] = False
        routed = bool(kwargs.pop("output_router_logits", False))
        if routed:
            kwargs["output_router_logits"] = True
        label_mask = labels[:, 1:] != IGNORED
        wanted = labels[:, 1:][label_mask]
        if is_encoder_decoder(self.config):
            parted = part_rows(kwargs["input_ids"], kwargs.get("attention_mask"), labels, self.config.pad_token_id)
            read, aux_loss = _read_logits(target_logits(self, parted), wanted, options), None
        elif options.kind == HeadKind.WHOLE:
            output = type(self).forward(self, *args, **kwargs)
            read = _read_logits(output.logits[:, :-1][label_mask], wanted, options)
            aux_loss = getattr(output, "aux_loss", None)
        else:
            output = trunk_of(self)(*args, **kwargs)
            read = _read_states(self, output.last_hidden_state[:, :-1][label_mask], wanted, options)
            aux_loss = _router_loss(self, output, kwargs.get("attention_mask")) if routed else None
        return _output(read, label_mask, num_items_in_batch, _aux(self, aux_loss, read.logprobs) if routed else None)

    model.forward = types.MethodType(forward, model)


class _Options(NamedTuple):
    temperature: float
    statistics: bool
    entropy_gradient: bool
    kind: HeadKind


class TokenReading(NamedTuple):
    """Of N tokens: log-probabilities, entropies, means of logits and whether it is the likeliest, each (N,)."""

    logprobs: torch.Tensor
    entropy: torch.Tensor
    mean_logits: torch.Tensor | None = None
    is_top1: torch.Tensor | None = None


def read_tokens(
    model: Any, states: torch.Tensor, labels: torch.Tensor, *, temperature: float = 1.0, entropy_gradient: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies (N,) of ``labels`` (N,) after last hidden ``states`` (N, D), by the model's head.

    ``model`` is without PEFT's wrapper, and its logits follow from its states. The entropy has a gradient only with
    ``entropy_gradient``, which costs a second projection of each chunk.
    """
    options = _Options(temperature, False, entropy_gradient, head_kind(model))
    read = _read_states(model, states, labels, options)
    return read.logprobs, read.entropy


def _read_states(model: Any, states: torch.Tensor, labels: torch.Tensor, options: _Options) -> TokenReading:
    if options.kind == HeadKind.PLAIN and not options.entropy_gradient:
        return _read_plain(model.get_output_embeddings(), states, labels, options)

    def read(part: torch.Tensor, wanted: torch.Tensor) -> TokenReading:
        return _read_logits(own_logits(model, part), wanted, options)

    parts = []
    for rows in chunks(len(labels), model.get_output_embeddings().weight.shape[0]) or [slice(0, 0)]:
        given = (states[rows], labels[rows])
        parts.append(checkpoint(read, *given, use_reentrant=False) if torch.is_grad_enabled() else read(*given))
    joined: list[Any] = [None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)]
    return TokenReading(*joined)


def read_logits(
    logits: torch.Tensor, labels: torch.Tensor, *, temperature: float = 1.0, entropy_gradient: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies (N,) of ``labels`` (N,), of a model's logits (N, V) as they are."""
    read = _read_logits(logits, labels, _Options(temperature, False, entropy_gradient, HeadKind.WHOLE))
    return read.logprobs, read.entropy


def _read_logits(logits: torch.Tensor, labels: torch.Tensor, options: _Options) -> TokenReading:
    """What is read off logits (N, V) as they are."""
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / options.temperature
    logps = scaled.log_softmax(-1)
    logprobs = logps.gather(-1, labels[:, None]).squeeze(-1)
    with torch.set_grad_enabled(options.entropy_gradient and torch.is_grad_enabled()):
        entropy = -(logps.exp() * logps).sum(-1)
    if not options.statistics:
        return TokenReading(logprobs, entropy)
    with torch.no_grad():
        return TokenReading(logprobs, entropy, scaled.mean(-1), scaled.argmax(-1) == labels)


def _read_plain(head: Any, states: torch.Tensor, labels: torch.Tensor, options: _Options) -> TokenReading:
    if isinstance(head, FSDPModule):
        head.unshard()  # its weight is read here, and not by its own forward, which would gather it
    given: dict[str, Any] = {"temperature": options.temperature, "head_bias": head.bias}
    if not options.statistics:
        return TokenReading(*token_logprobs_and_entropy(states, head.weight, labels, **given))
    logprobs, entropy, is_top1 = token_statistics(states, head.weight, labels, **given)
    with torch.no_grad():  # the mean over the vocabulary of linear logits is linear itself
        bias = 0 if head.bias is None else head.bias.float().mean()
        mean_logits = (states.float() @ head.weight.float().mean(0) + bias) / options.temperature
    return TokenReading(logprobs, entropy, mean_logits, is_top1)


def _router_loss(model: Any, output: Any, mask: torch.Tensor | None) -> torch.Tensor | None:
    """The load-balancing loss as the model's forward computes it; None where it computes none."""
    router_logits = getattr(output, "router_logits", None)
    if not router_logits:
        return None
    loss: torch.Tensor | None = getattr(
        own_output(model, output.last_hidden_state[:1, :1], router_logits=router_logits, mask=mask), "aux_loss", None
    )
    return loss


def _aux(model: Any, loss: torch.Tensor | None, like: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The routers' loss, and the coefficient with which TRL's head adds it to its own."""
    coefficient = getattr(model.config.get_text_config(), "router_aux_loss_coef", 0.0)
    return (like.new_zeros(()) if loss is None else loss), coefficient


def _output(
    read: TokenReading, label_mask: torch.Tensor, items: Any, aux: tuple[torch.Tensor, float] | None
) -> FusedCausalLMOutput:
    """TRL's output, fields (B, T), 0 where ``label_mask`` is False.

    The loss is summed over the labels and divided by ``items``, the labels of all accumulated batches, where given.
    """

    def spread(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else values.new_zeros(label_mask.shape).masked_scatter(label_mask, values)

    log_probs, entropy, mean_logits, is_top1 = map(spread, read)
    assert log_probs is not None
    loss = -log_probs.sum() / (label_mask.sum().clamp(min=1) if items is None else items)
    if aux is not None:
        loss = loss + aux[1] * aux[0]
    return FusedCausalLMOutput(
        loss=loss, log_probs=log_probs, entropy=entropy, label_mask=label_mask, mean_logits=mean_logits,
        is_top1=is_top1, aux_loss=None if aux is None else aux[0],
    )  # fmt: skip

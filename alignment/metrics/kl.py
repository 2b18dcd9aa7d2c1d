"""How far a policy has moved from its reference: KL(policy‖reference) of whole responses.

The estimator is Rao-Blackwellised (Amini et al. 2025): responses are sampled from the policy at temperature 1, and at
each of their tokens the KL of the two next-token distributions is summed over the whole vocabulary, not estimated from
the one token that was drawn. The same mean as the sampled log-ratio, with less variance, and never negative. Responses
are cut at ``max_new_tokens``, so it is the KL of responses up to that length.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from alignment.chat import render_prompt
from alignment.errors import StageError
from alignment.evaluation.bootstrap import positive_mean
from alignment.models.families.head import HeadKind, head_kind, own_logits, trunk_of
from alignment.models.seq2seq.architecture import is_encoder_decoder
from alignment.models.seq2seq.passes import part_answers, target_logits
from alignment.records import Artifact, Prompt, Record, Sampling
from alignment.rollouts.kv_cache import has_states, keeps_states_itself, new_cache
from alignment.rollouts.policy_pool import LoadedPolicy, PolicyPool
from alignment.rollouts.seeds import response_seed

CHUNK = 128  # positions whose (positions × vocabulary) logits are held at once
Use = Callable[[], LoadedPolicy]


class KlEstimate(Record):
    """Mean KL in nats per response over ``n`` prompts, with its 95 % interval (None for a single prompt)."""

    value: float
    low: float | None
    high: float | None
    n: int
    max_new_tokens: int


def mean_kl(values: Sequence[float], *, max_new_tokens: int) -> KlEstimate:
    """The estimate from one value for each response. Raises ValueError without values."""
    if not values:
        raise ValueError("a KL needs at least one response")
    if len(values) == 1:
        return KlEstimate(value=values[0], low=None, high=None, n=1, max_new_tokens=max_new_tokens)
    mean = positive_mean(values)
    return KlEstimate(value=mean.value, low=mean.low, high=mean.high, n=mean.n, max_new_tokens=max_new_tokens)


def token_kl(logits: torch.Tensor, reference_logits: torch.Tensor) -> torch.Tensor:
    """Exact KL(policy‖reference) of next-token distributions: (T, V) and (T, V) → (T,), float32 (float64 stays)."""
    logprobs = _wide(logits).log_softmax(-1)
    difference = logprobs - _wide(reference_logits).log_softmax(-1)
    # A token that the policy rules out (-inf) adds nothing, where 0 × -inf would add NaN.
    terms = torch.where(logprobs.isneginf(), torch.zeros_like(logprobs), logprobs.exp() * difference)
    return terms.sum(-1).clamp(min=0)


@torch.inference_mode()
def response_kl(policy: Use, reference: Use, prompt: Sequence[int], response: Sequence[int]) -> float:
    """The sum of :func:`token_kl` over a response's tokens, each given the prompt and the tokens before it.

    ``policy`` and ``reference`` give the two models, in turns, so they may share their weights.
    Raises StageError where their vocabularies differ, ValueError for an empty prompt or response.
    """
    if not prompt or not response:
        raise ValueError("the KL of a response needs a prompt and a response of at least one token")
    if is_encoder_decoder(_plain(policy().model).config):
        both = [target_logits(_plain(use().model), part_answers(_plain(use().model), [(prompt, response)]))
                for use in (policy, reference)]  # fmt: skip
        _require_one_vocabulary(*both)
        return float(token_kl(*both).double().sum())
    context = [*prompt, *response[:-1]]
    sides = [_Stream(policy, len(context)), _Stream(reference, len(context))]
    total, start = 0.0, 0
    first = len(prompt) - 1  # the position that predicts the response's first token
    for begin in range(first, len(context), CHUNK):
        end = min(begin + CHUNK, len(context))
        logits, reference_logits = (side.logits(context[start:end], end - begin) for side in sides)
        _require_one_vocabulary(logits, reference_logits)
        total += float(token_kl(logits, reference_logits).double().sum())
        start = end
    return total


@torch.inference_mode()
def batched_kls(
    policy: Use, reference: Use, answers: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch_size: int
) -> list[float]:
    """:func:`response_kl` of each (prompt, response), many in one forward pass: the same figures up to rounding.

    Answers of like length pass the trunk together, and the head reads their responses' positions alone, ``CHUNK`` at a
    time. Models whose logits do not follow from the last hidden states are read one answer after another.
    """
    if any(not prompt or not response for prompt, response in answers):
        raise ValueError("the KL of a response needs a prompt and a response of at least one token")
    if any(head_kind(_plain(use().model)) == HeadKind.WHOLE for use in (policy, reference)):
        return [response_kl(policy, reference, prompt, response) for prompt, response in answers]
    order = sorted(range(len(answers)), key=lambda place: sum(map(len, answers[place])))
    found = [0.0] * len(answers)
    for begin in range(0, len(order), batch_size):
        places = order[begin : begin + batch_size]
        for place, value in zip(places, _batch_kls(policy, reference, [answers[at] for at in places]), strict=True):
            found[place] = value
    return found


def _batch_kls(policy: Use, reference: Use, answers: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
    lengths = [len(response) for _prompt, response in answers]
    hidden, head = _responses_hidden(policy, answers)
    reference_hidden, reference_head = _responses_hidden(reference, answers)
    values = []
    for begin in range(0, len(hidden), CHUNK):
        logits, others = head(hidden[begin : begin + CHUNK]), reference_head(reference_hidden[begin : begin + CHUNK])
        _require_one_vocabulary(logits, others)
        values.append(token_kl(logits, others).double().cpu())
    return [float(part.sum()) for part in torch.split(torch.cat(values), lengths)]


def _responses_hidden(use: Use, answers: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[torch.Tensor, Any]:
    """(N, D) the trunk's states that predict the responses' tokens, one response after another; and the head."""
    model: Any = _plain(use().model)
    contexts = [[*prompt, *response[:-1]] for prompt, response in answers]
    longest = max(map(len, contexts))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in contexts], device=model.device)
    places = torch.arange(longest, device=model.device)
    mask = places < torch.tensor([[len(row)] for row in contexts], device=model.device)
    first = torch.tensor([[len(prompt) - 1] for prompt, _response in answers], device=model.device)
    output = trunk_of(model)(input_ids=ids, attention_mask=mask.long(), use_cache=False)
    hidden: torch.Tensor = output.last_hidden_state[mask & (places >= first)]
    plain = head_kind(model) == HeadKind.PLAIN
    return hidden, model.get_output_embeddings() if plain else partial(own_logits, model)


def _require_one_vocabulary(logits: torch.Tensor, others: torch.Tensor) -> None:
    if logits.shape != others.shape:
        sizes = f"{logits.shape[-1]} and {others.shape[-1]}"
        raise StageError(f"KL needs one vocabulary, but policy and reference have {sizes} tokens")


def _plain(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def response_kls(
    pool: PolicyPool,
    policy: Artifact,
    reference: Artifact,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> list[tuple[float, int]]:
    """(KL(policy‖reference), tokens) of one answer to each prompt, which the policy draws at temperature 1."""
    drawing = pool.use(policy)
    engine = drawing.engine(batch_size)
    asked = [render_prompt(drawing.tokenizer, prompt.messages) for prompt in prompts]
    sampling = Sampling(temperature=1.0, max_new_tokens=max_new_tokens)
    drawn = engine.generate(asked, sampling=sampling, seeds=[response_seed(seed, prompt.id, 1) for prompt in prompts])
    answers = [(ids, completion.tokens) for ids, (completion,) in zip(asked, drawn, strict=True)]
    values = batched_kls(lambda: pool.use(policy), lambda: pool.use(reference), answers, batch_size=batch_size)
    return [(value, len(tokens)) for value, (_ids, tokens) in zip(values, answers, strict=True)]


class _Stream:
    """A model that reads one sequence piece by piece, so that the logits of the whole are never held."""

    def __init__(self, use: Use, capacity: int) -> None:
        self.use, self.capacity = use, capacity
        self.cache: Any = None
        self.before: list[int] = []

    def logits(self, ids: Sequence[int], keep: int) -> torch.Tensor:
        """Logits (keep, V) after the last ``keep`` of the next ``ids``."""
        model: Any = self.use().model
        plain = _plain(model)
        if self.cache is None:
            self.cache = new_cache(plain.config, self.capacity)
            self.again = keeps_states_itself(plain) or has_states(self.cache)
        options = {"logits_to_keep": keep} if "logits_to_keep" in inspect.signature(plain.forward).parameters else {}
        if self.again:  # recurrent states go on by one token at a time: the sequence is read from its start
            self.before += ids
            output = model(input_ids=torch.tensor([self.before], device=model.device), use_cache=False, **options)
        else:
            tokens = torch.tensor([list(ids)], device=model.device)
            output = model(input_ids=tokens, past_key_values=self.cache, use_cache=True, **options)
        logits: torch.Tensor = output.logits[0, -keep:]
        return logits


def _wide(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()

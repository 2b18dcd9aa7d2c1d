"""Metrics that ask the model more than one answer: the perplexity of references, and pass@k of code.

What was measured is kept as a checkpoint, so that an evaluation that was stopped asks for nothing twice.
"""

import inspect
import json
from collections.abc import Callable, Sequence
from functools import partial
from math import comb
from typing import Any

import numpy as np
import torch

from alignment.chat import render_answer, render_prompt
from alignment.digests import digest_of
from alignment.durable_files import write_text
from alignment.evaluation.bootstrap import Floats, Sums, averaged, ratio
from alignment.metrics.measure import asked
from alignment.models.seq2seq.architecture import is_encoder_decoder
from alignment.models.seq2seq.passes import part_answers, target_logits
from alignment.recipe.metrics import MetricList, PassAtK, Perplexity, metric_name
from alignment.records import Artifact, Prompt, Sampling
from alignment.reward.sandbox import run_all
from alignment.reward.verifiable import fenced
from alignment.rollouts.held_out import draw
from alignment.rollouts.policy_pool import LoadedPolicy
from alignment.stage import StageContext

FIRST = 2  # place of the first sample among a prompt's seeds: the answer is the first, the KL's the second


def probe(
    metrics: MetricList,
    context: StageContext,
    policy: Callable[[], LoadedPolicy],
    artifact: Artifact,
    prompts: Sequence[Prompt],
    *,
    sampling: Sampling,
    batch_size: int,
) -> tuple[dict[str, Sums], int]:
    """By name, the metrics of ``metrics`` that ask the model itself; and how many tokens were sampled for them.

    ``policy`` puts ``artifact`` in use, which it is where something was not measured yet. ``sampling`` gives the length
    of pass@k's answers. Raises StageError where programs cannot be confined here.
    """
    found: dict[str, Sums] = {}
    drawn_from: dict[str, int] = {}  # two metrics may count the same samples
    for metric in metrics:
        wanted = asked(metric, prompts)
        chosen = [prompt for prompt, is_asked in zip(prompts, wanted, strict=True) if is_asked]
        if isinstance(metric, Perplexity):
            make = partial(_likelihoods, policy, chosen, metric.batch_size)
            rows = _kept(context, f"likelihood-{artifact.digest[:16]}-{_of(chosen)}.json", make)
            found[metric_name(metric)] = Sums(_spread(rows, wanted), np.array(wanted, dtype=np.bool_), perplexity)
        elif isinstance(metric, PassAtK):
            drawn = sampling.model_copy(update={"temperature": metric.temperature, "beams": 1})
            what = [metric.samples, drawn.model_dump(mode="json"), metric.seconds, metric.memory_mb, _of(chosen)]
            name = f"passed-{artifact.digest[:16]}-{digest_of(what)[:16]}.json"
            make = partial(_passes, metric, context, policy, artifact, chosen, drawn, batch_size)
            rows = _kept(context, name, make)
            drawn_from[name] = sum(row[1] for row in rows)
            chances = iter(pass_at_k(metric.samples, int(row[0]), metric.k) for row in rows)
            found[metric_name(metric)] = averaged([next(chances) if is_asked else None for is_asked in wanted])
    return found, sum(drawn_from.values())


def pass_at_k(n: int, passed: int, k: int) -> float:
    """The chance that of ``k`` answers drawn from ``n``, of which ``passed`` pass, one does (Chen et al. 2021, eq. 1).

    Raises ValueError unless 0 <= passed <= n and 1 <= k <= n.
    """
    if not (0 <= passed <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} cannot be told from {passed} of {n}")
    return 1 - comb(n - passed, k) / comb(n, k)


def perplexity(sums: Floats) -> Floats:
    """exp of nats per token, from sums (..., 2) of nats and tokens."""
    return np.asarray(np.exp(ratio(sums)), dtype=np.float64)


def _likelihoods(
    policy: Callable[[], LoadedPolicy], prompts: Sequence[Prompt], batch_size: int
) -> list[tuple[float, int]]:
    return reference_likelihoods(policy(), prompts, batch_size=batch_size)


@torch.inference_mode()
def reference_likelihoods(
    policy: LoadedPolicy, prompts: Sequence[Prompt], *, batch_size: int
) -> list[tuple[float, int]]:
    """For each prompt its reference's negative log-likelihood in nats, EOS included, and its number of tokens."""
    model: Any = policy.model
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    keeps = "logits_to_keep" in inspect.signature(plain.forward).parameters
    asked_ids = [render_prompt(policy.tokenizer, prompt.messages) for prompt in prompts]
    answers = [render_answer(policy.tokenizer, prompt.messages, prompt.reference or "") for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(asked_ids[i]) + len(answers[i]))
    if is_encoder_decoder(plain.config):
        return _decoded_likelihoods(plain, list(zip(asked_ids, answers, strict=True)), order, batch_size)
    found: list[tuple[float, int]] = [(0.0, 0)] * len(prompts)
    for begin in range(0, len(order), batch_size):
        chunk = order[begin : begin + batch_size]
        rows = [asked_ids[i] + answers[i] for i in chunk]
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), policy.tokenizer.pad_token_id, device=model.device)
        mask = torch.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = torch.tensor(row, device=model.device)
            mask[at, : len(row)] = 1
        first = min(len(asked_ids[i]) for i in chunk) - 1  # the position that predicts the earliest answer
        options = {"logits_to_keep": longest - first} if keeps else {}
        logits = model(input_ids=ids, attention_mask=mask, **options).logits[:, -(longest - first) :]
        for at, i in enumerate(chunk):
            start, size = len(asked_ids[i]) - 1 - first, len(answers[i])
            logprobs = logits[at, start : start + size].float().log_softmax(-1)
            labels = torch.tensor(answers[i], device=model.device)[:, None]
            found[i] = (-float(logprobs.gather(-1, labels).double().sum()), size)
    return found


def _decoded_likelihoods(
    model: Any, answers: list[tuple[list[int], list[int]]], order: Sequence[int], batch_size: int
) -> list[tuple[float, int]]:
    """The same of (prompt, answer) token ids, by an encoder-decoder."""
    found = [(0.0, 0)] * len(answers)
    for begin in range(0, len(order), batch_size):
        chunk = order[begin : begin + batch_size]
        parted = part_answers(model, [answers[i] for i in chunk])
        logprobs = target_logits(model, parted).float().log_softmax(-1)
        own = logprobs.gather(-1, parted.targets[parted.target_mask][:, None]).squeeze(-1).double()
        for i, values in zip(chunk, torch.split(own, [len(answers[i][1]) for i in chunk]), strict=True):
            found[i] = (-float(values.sum()), len(values))
    return found


def _passes(
    metric: PassAtK,
    context: StageContext,
    policy: Callable[[], LoadedPolicy],
    artifact: Artifact,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    batch_size: int,
) -> list[tuple[float, int]]:
    """For each prompt, how many of its samples pass, and the tokens that they took."""
    groups = draw(policy(), artifact, prompts, sampling=sampling, seed=context.run.seed, first=FIRST,
                  per_prompt=metric.samples, batch_size=batch_size)  # fmt: skip
    programs = [
        (fenced(answer.text), prompt.reference or "")
        for prompt, group in zip(prompts, groups, strict=True)
        for answer in group
    ]
    ended = iter(run_all(programs, seconds=metric.seconds, memory_mb=metric.memory_mb, processes=metric.processes))
    return [(sum(next(ended).passed for _ in group), sum(answer.tokens for answer in group)) for group in groups]


def _kept(context: StageContext, name: str, make: Callable[[], list[tuple[float, int]]]) -> list[tuple[float, int]]:
    path = context.checkpoints / name
    if not path.exists():
        with context.working():
            write_text(path, json.dumps(make()))
    return [(row[0], int(row[1])) for row in json.loads(path.read_text("utf-8"))]


def _of(prompts: Sequence[Prompt]) -> str:
    return digest_of([prompt.id for prompt in prompts])[:8]


def _spread(rows: Sequence[tuple[float, int]], wanted: Sequence[bool]) -> Floats:
    """Rows of the prompts that were asked, with zeros for the others."""
    own = iter(rows)
    return np.array([next(own) if is_asked else (0.0, 0.0) for is_asked in wanted], dtype=np.float64)

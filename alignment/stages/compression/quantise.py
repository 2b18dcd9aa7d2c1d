"""Quantisation: a policy's weights in fewer bits, written, read again from disk, and held against the policy.

The policy answers held-out prompts greedily; on these answers' tokens the export, loaded from its files, has to find
the same token most likely or to be near in KL. Where it is neither, nothing is published. A GGUF file is read by
transformers, and by llama.cpp where that is installed: neither is what wrote it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alignment.chat import render_answer, render_prompt
from alignment.compression.agreement import Row, TokenAgreement, compare
from alignment.compression.footprint import MB, Speed, peak_memory_of
from alignment.compression.llama_cpp_reader import compare_with_llama_cpp, is_installed
from alignment.compression.schemes import export
from alignment.durable_files import write_text
from alignment.errors import StageError
from alignment.models.adapters import merged
from alignment.models.device import pick_device
from alignment.models.families import stop_ids
from alignment.models.load import load_policy, policy_tokenizer
from alignment.models.quantised import load_weights, quantisation, weight_bytes
from alignment.models.weights import GGUF_FILE, require_finite
from alignment.recipe.base import BASE
from alignment.recipe.stages.compression.quantise import QuantiseStage
from alignment.records import Prompt, Sampling
from alignment.rollouts.held_out import held_out_prompts
from alignment.rollouts.transformers_engine import TransformersEngine
from alignment.stage import Progress, StageContext, StageResult

STEPS = 5  # written, both asked, compared, read by others


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a model did with the prompts: greedy answers, their tokens, and what it took."""

    answers: list[tuple[int, ...]]
    weights: int
    peak: int | None
    speed: Speed


def run(settings: QuantiseStage, context: StageContext) -> StageResult:
    """Writes the quantised policy and ``quantisation.json``.

    Raises StageError where the policy is quantised already, the scheme is not to be had here, or the export, read
    again, does not agree with the policy.
    """
    artifact, base = context.inputs[settings.model], context.inputs[BASE]
    tokenizer = policy_tokenizer(artifact, base, context.run)
    prompts = held_out_prompts(context, limit=settings.limit)
    whole = _whole(settings, context)
    device, dtype = pick_device(context.run.resources), getattr(torch, context.run.model.dtype)
    with context.working():
        export(whole, tokenizer, context.output, settings.scheme, dtype=dtype, device=device)
    context.report(Progress(1, STEPS))

    ids = [render_prompt(tokenizer, prompt.messages) for prompt in prompts]
    with context.working():
        before = _ask(settings, context, whole, tokenizer, ids)
        context.report(Progress(2, STEPS))
        after = _ask(settings, context, context.output, tokenizer, ids)
    context.report(Progress(3, STEPS))

    rows: list[Row] = list(zip(ids, before.answers, strict=True))
    policy = load_weights(whole, dtype, device).eval()
    exported = load_weights(context.output, dtype, device).eval()
    require_finite(exported.named_parameters(), f"{context.name}, read again,")
    with context.working():
        found = compare(policy, exported, rows, batch_size=settings.batch_size)
        referenced = _references(tokenizer, prompts, ids)
        told = compare(policy, exported, referenced, batch_size=settings.batch_size) if referenced else found
    del exported
    context.report(Progress(4, STEPS))
    metrics = _figures(found, told, before, after, whole, context.output) | {"prompts": float(len(prompts))}
    _require_agreement(settings, context, found, "read again by transformers")
    if quantisation(context.output) == "gguf" and is_installed():
        with context.working():
            other, speed = compare_with_llama_cpp(policy, tokenizer, context.output / GGUF_FILE, rows)
        _require_agreement(settings, context, other, "read by llama.cpp")
        metrics |= {
            "llama_cpp.equal_greedy": other.equal_share,
            "llama_cpp.kl_per_token": other.kl_per_token,
            "llama_cpp.tokens_per_second": speed.per_second,
        }
    context.report(Progress(STEPS, STEPS, {"kl_per_token": found.kl_per_token}))
    record: dict[str, object] = {"scheme": settings.scheme, "min_equal": settings.min_equal, "max_kl": settings.max_kl}
    record |= {"of": str(artifact.ref()), "tokens": found.tokens, "equal_greedy": found.equal_share,
               "kl_per_token": found.kl_per_token}  # fmt: skip
    write_text(context.output / "quantisation.json", json.dumps(record, indent=1) + "\n")
    sampled = before.speed.tokens + after.speed.tokens
    return StageResult("model", metrics, tokens_sampled=sampled)


def _whole(settings: QuantiseStage, context: StageContext) -> Path:
    """The policy's whole weights as a folder, an adapter merged into its base."""
    artifact, base = context.inputs[settings.model], context.inputs[BASE]
    folder = context.checkpoints / "whole"
    if (folder / "tokenizer_config.json").exists():  # written last, by a run that was stopped later
        return folder
    for source in (artifact, base):
        if (method := quantisation(Path(source.path))) is not None:
            raise StageError(
                f"{context.name}: {source.ref()} is quantised already ({method}); name what it was made of"
            )
    model, tokenizer = load_policy(artifact, base, context.run, plain=True)
    whole = merged(model, str(artifact.ref()))
    require_finite(whole.named_parameters(), f"{artifact.ref()}, merged,")  # what is finite apart may overflow together
    whole.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _ask(
    settings: QuantiseStage, context: StageContext, folder: Path, tokenizer: Any, ids: Sequence[Sequence[int]]
) -> _Asked:
    """Loads the model in a folder, and has it answer, with nothing else beside it."""
    device, dtype = pick_device(context.run.resources), getattr(torch, context.run.model.dtype)
    speed, sampling = Speed(), Sampling(temperature=0.0, max_new_tokens=settings.max_new_tokens)
    with peak_memory_of(device) as peak:
        model = load_weights(folder, dtype, device).eval()
        weights = weight_bytes(model)  # some kernels lay them out anew at the first product
        engine = TransformersEngine(
            model, tokenizer, stop_ids=stop_ids(model, tokenizer), batch_size=settings.batch_size
        )
        with speed.timed():
            drawn = engine.generate(ids, sampling=sampling, seeds=[0] * len(ids))
    answers = [completion.tokens for (completion,) in drawn]
    speed.tokens = sum(map(len, answers))
    return _Asked(answers, weights, peak.bytes, speed)


def _references(tokenizer: Any, prompts: Sequence[Prompt], ids: Sequence[Sequence[int]]) -> list[Row]:
    """The prompts that have a reference, and its tokens."""
    return [
        (asked, render_answer(tokenizer, prompt.messages, prompt.reference))
        for prompt, asked in zip(prompts, ids, strict=True)
        if prompt.reference is not None
    ]


def _figures(
    found: TokenAgreement, told: TokenAgreement, before: _Asked, after: _Asked, whole: Path, exported: Path
) -> dict[str, float]:
    """Figures of the export, and of the policy with ``_before``; ``told`` is the agreement on references, if any."""
    figures = {"equal_greedy": found.equal_share, "kl_per_token": found.kl_per_token, "tokens": float(found.tokens)}
    for suffix, asked, folder, perplexity in (
        ("", after, exported, told.perplexities[1]),
        ("_before", before, whole, told.perplexities[0]),
    ):
        files = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf")]
        figures[f"perplexity{suffix}"] = perplexity
        figures[f"disk_mb{suffix}"] = sum(path.stat().st_size for path in files) / MB
        figures[f"weights_mb{suffix}"] = asked.weights / MB
        figures[f"tokens_per_second{suffix}"] = asked.speed.per_second
        if asked.peak is not None:
            figures[f"peak_mb{suffix}"] = asked.peak / MB
    return figures


def _require_agreement(settings: QuantiseStage, context: StageContext, found: TokenAgreement, how: str) -> None:
    if found.equal_share >= settings.min_equal or found.kl_per_token <= settings.max_kl:
        return
    raise StageError(
        f"{context.name}: the {settings.scheme} export, {how}, does not agree with {settings.model}: "
        f"{found.equal_share:.1%} of {found.tokens} greedy tokens are equal (wanted {settings.min_equal:.1%}) and its "
        f"KL is {found.kl_per_token:.3f} nats a token (wanted {settings.max_kl:g} at most), so nothing is published; "
        "take a scheme with more bits, or set max_kl to what you accept"
    )

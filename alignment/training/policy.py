"""The head and tail of every stage that trains a policy: what it starts from, and the artifact that it leaves."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from alignment.distributed.fsdp import whole_state
from alignment.durable_files import write_text
from alignment.errors import StageError
from alignment.models.adapter_kinds.soft_prompt import virtual_tokens
from alignment.models.adapters import adapt, is_adapter
from alignment.models.fake_quantised import fake_quantise
from alignment.models.families import check_rope
from alignment.models.load import Policy, load_policy, save_policy
from alignment.models.seq2seq.architecture import is_encoder_decoder
from alignment.recipe.base import BASE, AdapterSettings
from alignment.recipe.stages.spec import StageSpec
from alignment.records import Artifact, Sampling
from alignment.stage import StageContext, StageResult
from alignment.training.curves import Curves, final_metrics, write_curves
from alignment.training.dropout import configured_dropout, switch_off_dropout
from alignment.training.setup import seed_everything
from alignment.training.snapshots import Snapshots


class PolicySettings(Protocol):
    """What a stage's settings say of the policy that it trains."""

    @property
    def model(self) -> str: ...
    @property
    def spec(self) -> StageSpec: ...
    def adapter_trained(self) -> AdapterSettings | None: ...
    def trained_part(self) -> AdapterSettings | None: ...
    def snapshot_steps(self) -> int | None: ...
    def trained_length(self) -> int | None: ...
    def longest_answer(self) -> int | None: ...
    def longest_prompt(self) -> int | None: ...
    def sampling_used(self) -> Sampling | None: ...
    def rounds_weights(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """What a training leaves beside weights.

    Attributes:
        metrics: the stage's own figures, beside those that are quoted from its curves.
        files: further files of the artifact, by name, each a value for JSON.
        sample_tables: a folder of tables of answers, or None.
    """

    curves: Curves
    metrics: Mapping[str, float]
    tokens_trained: int
    tokens_sampled: int = 0
    files: Mapping[str, Any] = field(default_factory=dict)
    sample_tables: Path | None = None


@dataclass(frozen=True, slots=True)
class PolicyTraining:
    """A policy that is about to be trained, in training mode, its adapter added. ``start`` is its artifact.

    ``rounding``: how its weights are rounded in each forward pass (:mod:`alignment.models.fake_quantised`), or None.
    """

    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    start: Artifact
    base: Artifact
    snapshots: Snapshots
    context: StageContext
    rounding: str | None = None

    def finish(self, trained: Any, outcome: TrainingOutcome) -> StageResult:
        """Writes the policy with its curves and snapshots. Every worker has to come here; rank 0 alone writes.

        ``trained`` is the policy as its trainer wrapped it.
        """
        state = whole_state(trained, trained_only=isinstance(self.policy, PeftModel))
        context = self.context
        if context.rank > 0:
            return StageResult("model", {})
        dtype = getattr(torch, context.run.model.dtype)
        with configured_dropout(self.policy):
            save_policy(trained, self.tokenizer, self.base, context.output, state=state, dtype=dtype)
        self.snapshots.publish()
        if outcome.sample_tables is not None:
            shutil.copytree(outcome.sample_tables, context.output / "samples")
        write_curves(outcome.curves, context.output)
        for name, value in outcome.files.items():
            write_text(context.output / name, json.dumps(value, indent=1))
        metrics = final_metrics(outcome.curves) | dict(outcome.metrics)
        return StageResult("model", metrics, outcome.curves, outcome.tokens_trained, outcome.tokens_sampled)


def begin_policy(
    settings: PolicySettings,
    context: StageContext,
    *,
    reference: bool,
    masters: bool = True,
) -> PolicyTraining:
    """Seeds, loads the policy that a stage starts from, and adds the adapter that it asks for.

    An adapter that was trained before is trained on, whatever the settings say.

    Args:
        reference: the stage compares the policy with what it started from, so that its dropout is off.
        masters: where all weights are trained they are held in float32; else the stage's optimizer sees to that.

    Raises:
        StageError: an adapter was made on another base, or sequences may be so long that they change the positions
            of those beside them; an adapter is to be trained on whole weights that are not the base; the policy is an
            encoder-decoder, which the stage cannot train.
    """
    seed_everything(context.run)
    start, base = context.inputs[settings.model], context.inputs[BASE]
    adapter = settings.adapter_trained()
    if adapter is not None and not is_adapter(start) and start.digest != base.digest:
        raise StageError(
            f"{start.ref()} has whole weights of its own, and an adapter is kept on {base.key} alone: set lora to null"
        )
    whole = adapter is None and not is_adapter(start)
    policy, tokenizer = load_policy(
        start, base, context.run, trainable=True, placed=not context.sharded, masters=masters and whole
    )
    if is_encoder_decoder(policy.config) and "model" not in settings.spec.encoder_decoder_roles:
        kind = policy.config.model_type
        raise StageError(f"{start.ref()} is an encoder with a decoder ({kind}), not a decoder alone")
    if not is_adapter(start):
        policy = adapt(policy, settings.trained_part(), tokenizer)
    if (longest := _longest_sequence(settings)) is not None:
        check_rope(policy.config, longest + virtual_tokens(policy))
    if reference:
        switch_off_dropout(policy)
    if (rounding := settings.rounds_weights()) is not None:
        if isinstance(policy, PeftModel):
            raise StageError(f"qat={rounding} rounds weights that are trained, and {start.ref()} is an adapter")
        fake_quantise(policy, rounding)
    snapshots = Snapshots(settings.snapshot_steps(), tokenizer, base, context)
    return PolicyTraining(policy, tokenizer, start, base, snapshots, context, rounding)


def _longest_sequence(settings: PolicySettings) -> int | None:
    """Tokens of the longest prompt and answer that a stage trains on, where its settings bound them."""
    answer, prompt = settings.longest_answer(), settings.longest_prompt()
    if answer is not None and prompt is not None:
        return prompt + answer
    return settings.trained_length()

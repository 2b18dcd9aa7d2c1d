"""The stage ``constitution``: responses → critique → revision → demonstrations and pairs (Bai et al. 2022, section 3).

A revision counts only where the writer's answer can be used as it stands. One that is empty, cut off, unchanged, not
the JSON that was asked for, or not there at all is counted by its reason, and the response keeps what it had before.
Each step is kept with its principle and critique in ``revisions.jsonl``: nothing is trained on whose reason is unknown.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import ValidationError

from alignment.data.jsonl import read_records, write_records
from alignment.data.split import limited
from alignment.data.text import words
from alignment.digests import content_id, pair_id, prompt_id
from alignment.durable_files import write_text
from alignment.errors import StageError
from alignment.judges.factory import build_writer
from alignment.judges.llm_judge import Asker, Reply
from alignment.judges.prompts import JudgePrompt, parse
from alignment.judges.protocol import JudgeUsage, wait_for
from alignment.preferences.ai_feedback_report import ConstitutionFigures, PrincipleFigures
from alignment.preferences.principles import load_constitution
from alignment.recipe.stages.feedback.ai_feedback import ConstitutionStage, Principle
from alignment.records import Demonstration, Message, PreferencePair, Prompt, Record, Response
from alignment.stage import Progress, StageContext, StageResult

BLOCK = 32  # responses in a block
Why = Literal["", "empty", "unchanged", "cut_off", "unparsable", "failed", "unasked"]
REASONS: tuple[Why, ...] = ("unchanged", "empty", "cut_off", "unparsable", "failed", "unasked")


class Step(Record):
    """One round: the principle, the critique, and the revision where ``note`` is empty; else why there is none."""

    principle: str
    critique: str = ""
    revision: str = ""
    note: Why = ""


class Revision(Record):
    """What became of one response. ``writer`` is who criticised and revised it."""

    response_id: str
    prompt_id: str
    writer: str
    original: str
    steps: tuple[Step, ...]
    original_finished: bool = True  # False: the response was cut off at its longest length

    @property
    def text(self) -> str | None:
        """The last revision that can be used; None where there is none, or where it is the original again."""
        usable = [step.revision for step in self.steps if not step.note]
        return usable[-1] if usable and not _same(usable[-1], self.original) else None


class RevisedBlock(Record):
    """Revisions that are a checkpoint together, and what they took, whenever that was."""

    revisions: tuple[Revision, ...]
    tally: JudgeUsage


def run(settings: ConstitutionStage, context: StageContext) -> StageResult:
    """Writes ``revisions.jsonl``, ``demonstrations.jsonl``, ``pairs.jsonl`` and ``constitution.json``.

    Raises StageError where no response was revised, or the writer cannot be asked; InputError for a faulty file.
    """
    principles = settings.principles or load_constitution(context.data["constitution"]).principles
    drafts = _drafts(settings, context)
    writer, name = build_writer(settings.writer, context)
    reviser = Reviser(settings, principles, writer, name, context.run.seed)
    revisions, tally = list[Revision](), JudgeUsage()
    for start in range(0, len(drafts), BLOCK):
        path = context.checkpoints / f"revised-{start // BLOCK:05d}.json"
        # An endpoint's answers are kept by themselves, and must be counted again.
        done = _kept(path) if settings.writer.endpoint is None else None
        if done is None:
            before = writer.tally.copy()
            with context.working():
                written = wait_for(reviser.revise(drafts[start : start + BLOCK]))
            done = RevisedBlock(revisions=tuple(written), tally=writer.tally - before)
            write_text(path, done.model_dump_json() + "\n")
        revisions += done.revisions
        tally = tally + done.tally
        context.report(Progress(len(revisions), len(drafts), {}, tally.answer_tokens))
    figures = summarise(settings, principles, revisions, name, tally.figures())
    if not figures.revised:
        counts = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in figures.left_out.items())
        raise StageError(
            f"none of the {len(revisions)} responses was revised ({counts}); take a better writer, give it more "
            "tokens (writer.max_tokens), or simpler principles"
        )
    by_id = {prompt.id: prompt for prompt, _response in drafts}
    pairs = [pair for one in revisions if (pair := pair_of(by_id[one.prompt_id], one)) is not None]
    shown = [demonstration_of(by_id[one.prompt_id], one) for one in revisions if one.text is not None]
    demonstrations = list({one.id: one for one in shown}.values())
    write_records(context.output / "revisions.jsonl", revisions)
    write_records(context.output / "demonstrations.jsonl", demonstrations)
    write_records(context.output / "pairs.jsonl", list({pair.id: pair for pair in pairs}.values()))
    write_text(context.output / "constitution.json", figures.model_dump_json(indent=1) + "\n")
    metrics = {"pairs": float(len({pair.id for pair in pairs})), "demonstrations": float(len(demonstrations))}
    return StageResult("preferences", metrics | _metrics(figures), tokens_sampled=tally.answer_tokens)


class Reviser:
    """Criticises and revises responses by principles that the seed draws."""

    def __init__(
        self, settings: ConstitutionStage, principles: Sequence[Principle], writer: Asker, name: str, seed: int
    ) -> None:
        self.settings, self.principles, self.writer, self.name, self.seed = settings, principles, writer, name, seed

    async def revise(self, drafts: Sequence[tuple[Prompt, Response]]) -> list[Revision]:
        """One record for each response, in their order; a response whose writing failed is not asked about again."""
        texts = [response.text.strip() for _prompt, response in drafts]
        steps: list[list[Step]] = [[] for _ in drafts]
        for number in range(self.settings.rounds):
            going = [i for i in range(len(drafts)) if not steps[i] or steps[i][-1].note in ("", "unchanged")]
            drawn = {i: draw(self.principles, drafts[i][1].id, number, self.seed) for i in going}
            turns = {i: [*drafts[i][0].messages, _says("assistant", texts[i])] for i in going}
            asked = {i: [*turns[i], _says("user", self._ask(drawn[i].critique, "critique"))] for i in going}
            critiques = await self._written(asked, "critique")
            able = {
                i: [*asked[i], _says("assistant", text), _says("user", self._ask(drawn[i].revision, "revision"))]
                for i, (text, note) in critiques.items()
                if note in ("", "cut_off")
            }
            revisions = await self._written(able, "revision")
            for i in going:
                critique, note = critiques[i]
                revision, note = revisions.get(i, ("", note))
                if not note and _same(revision, texts[i]):
                    note = "unchanged"
                steps[i].append(Step(principle=drawn[i].name, critique=critique, revision=revision, note=note))
                texts[i] = texts[i] if note else revision
        return [
            Revision(response_id=response.id, prompt_id=prompt.id, writer=self.name, original=response.text,
                     steps=tuple(own), original_finished=response.finished)
            for (prompt, response), own in zip(drafts, steps, strict=True)
        ]  # fmt: skip

    def _ask(self, principle: str, field: str) -> str:
        form = f'one JSON object and nothing else: {{"{field}": "…"}}' if self.settings.json_answers else None
        if field == "critique":
            return f"{principle}\n\nReply with " + (form or "the critique alone, in a few sentences.")
        return f"{principle}\n\nReply with " + (form or "the new answer alone, without a word about it.")

    async def _written(self, asked: dict[int, list[Message]], field: str) -> dict[int, tuple[str, Why]]:
        """What was written for each, and why it cannot be used where it cannot."""
        schema: dict[str, Any] | None = None
        if self.settings.json_answers:
            schema = {"type": "object", "properties": {field: {"type": "string"}}, "required": [field],
                      "additionalProperties": False}  # fmt: skip
        replies = await self.writer.ask([JudgePrompt(tuple(messages), schema) for messages in asked.values()])
        return {i: _read(reply, schema, field) for i, reply in zip(asked, replies, strict=True)}


def draw(principles: Sequence[Principle], response_id: str, number: int, seed: int) -> Principle:
    """The principle of a response's round: it depends on the seed, the response and the round alone."""
    return principles[int(content_id(["principle", seed, response_id, number]), 16) % len(principles)]


def pair_of(prompt: Prompt, revision: Revision) -> PreferencePair | None:
    """The revision over the response that it began with; None where there is no usable one, or nothing before it."""
    text = revision.text
    if text is None or not revision.original.strip():
        return None
    return PreferencePair(
        id=pair_id(prompt.messages, text, revision.original), prompt_id=prompt.id, prompt=prompt.messages, chosen=text,
        rejected=revision.original, rejected_finished=revision.original_finished, rater_kind="constitution",
        kind=prompt.kind,
    )  # fmt: skip


def demonstration_of(prompt: Prompt, revision: Revision) -> Demonstration:
    """The prompt and its last usable revision; ``source`` names the principles that led there."""
    assert revision.text is not None
    turns = (*prompt.messages, _says("assistant", revision.text))
    by = ", ".join(dict.fromkeys(step.principle for step in revision.steps if not step.note))
    return Demonstration(id=prompt_id(turns), messages=turns, kind=prompt.kind, source=f"constitution: {by}")


def summarise(
    settings: ConstitutionStage,
    principles: Sequence[Principle],
    revisions: Sequence[Revision],
    writer: str,
    tally: dict[str, float],
) -> ConstitutionFigures:
    steps = [step for one in revisions for step in one.steps]
    revised = [one for one in revisions if one.text is not None]
    by_name = {principle.name: [step for step in steps if step.principle == principle.name] for principle in principles}
    return ConstitutionFigures(
        writer=writer,
        rounds=settings.rounds,
        responses=len(revisions),
        revised=len(revised),
        left_out=_reasons(steps),
        principles=tuple(
            PrincipleFigures(name=name, drawn=len(own), revised=sum(not step.note for step in own),
                             left_out=_reasons(own))
            for name, own in by_name.items()
        ),
        words_before=fmean(len(words(one.original)) for one in revised) if revised else 0.0,
        words_after=fmean(len(words(one.text or "")) for one in revised) if revised else 0.0,
        tally=tally,
    )  # fmt: skip


def _kept(path: Path) -> RevisedBlock | None:
    """A block that was finished before the stage was stopped."""
    try:
        return RevisedBlock.model_validate_json(path.read_text("utf-8"))
    except (FileNotFoundError, ValidationError):
        return None


def _reasons(steps: Sequence[Step]) -> dict[str, int]:
    counts = Counter(step.note for step in steps)
    return {reason: counts[reason] for reason in REASONS if counts[reason]}


def _metrics(figures: ConstitutionFigures) -> dict[str, float]:
    left_out = {f"left_out.{reason}": float(figures.left_out.get(reason, 0)) for reason in REASONS}
    return left_out | {
        "responses": float(figures.responses),
        "revised": float(figures.revised),
        "rejected_words": figures.words_before,
        "chosen_words": figures.words_after,
        "cost": figures.tally["money"],
    }


def _drafts(settings: ConstitutionStage, context: StageContext) -> list[tuple[Prompt, Response]]:
    names = (settings.responses,) if isinstance(settings.responses, str) else settings.responses
    folders = [Path(context.inputs[name].path) for name in names]
    prompts = {one.id: one for folder in folders for one in read_records(folder / "prompts.jsonl", Prompt)}
    responses = [one for folder in folders for one in read_records(folder / "responses.jsonl", Response)]
    distinct = {(one.prompt_id, one.text.strip()): one for one in responses if one.text.strip()}
    if not distinct:
        raise StageError(f"none of the {len(responses)} responses of {', '.join(names)} says anything to criticise")
    return [(prompts[one.prompt_id], one) for one in limited(list(distinct.values()), settings.limit)]


def _read(reply: Reply, schema: dict[str, Any] | None, field: str) -> tuple[str, Why]:
    if reply.text is None:
        return "", reply.note or "failed"
    text = reply.text.strip()
    if schema is not None:
        found = parse(reply.text, schema)
        if found is None:
            return "", "cut_off" if not reply.finished and field == "revision" else "unparsable"
        text = str(found[field]).strip()
    if not text:
        return "", "empty"
    return text, "" if reply.finished else "cut_off"


def _same(one: str, other: str) -> bool:
    """Whether two texts differ in white space alone."""
    return one.split() == other.split()


def _says(role: Literal["user", "assistant"], text: str) -> Message:
    return Message(role=role, content=text)

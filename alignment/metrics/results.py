"""What an evaluation found, as it stands in ``evaluation.json`` and ``samples.jsonl``, and how it is put together."""

from collections import Counter
from collections.abc import Mapping, Sequence

from pydantic import Field

from alignment.evaluation.bootstrap import Difference, Measure, Sums, estimate
from alignment.evaluation.estimate import Estimate
from alignment.evaluation.metric_names import (
    INTERVAL_PARTS,
    directions,
    evaluated_models,
    evaluation_judges,
    evaluation_metric_names,
)
from alignment.evaluation.slices import EvaluationSlice, evaluate_slices, leads_of
from alignment.evaluation.win_rate import Games, Rate, length_controlled_win_rates, win_rate
from alignment.metrics.kl import KlEstimate
from alignment.metrics.reward_metrics import RewardScores, all_sums
from alignment.metrics.short_answers import last_number
from alignment.metrics.text_metrics import (
    bleu,
    distinct_n,
    exact_match,
    finished_rate,
    mean_words,
    number_match,
    repetition,
    rouge,
)
from alignment.recipe.metrics import Better, metric_name
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.recipe.stages.prompting import Prompting
from alignment.records import EpisodeResponse, EpisodeTurn, Message, Prompt, Record, Response, Sampling

Outcomes = Mapping[str, Mapping[str, Sequence[float]]]  # opponent → judge → one outcome for each prompt
Answers = Mapping[str, Sequence[Response]]  # model → one response for each prompt


class WinRate(Record):
    """The candidate against one opponent by one judge; ``length_controlled`` as if answers were equally long.

    That figure and its 95 % interval are of all opponents together, whose games share the difficulty of the prompts.
    """

    opponent: str
    judge: str
    rate: Rate
    length_controlled: float
    length_controlled_low: float
    length_controlled_high: float
    kinds: dict[str, Rate]


class ReferenceMetrics(Record):
    """Answers against the reference answers of the ``n`` prompts that have one; numbers where ``numbers`` have one."""

    n: int
    bleu: float
    bleu_signature: str
    rouge1: float
    rouge2: float
    rouge_l: float
    exact_match: float
    numbers: int
    number_match: float | None


class ModelMetrics(Record):
    """One model's answers. ``length`` is the mean of ``lengths``: generated tokens, EOS included."""

    artifact: str
    length: float
    lengths: tuple[int, ...]
    words: float
    repetition: float
    distinct_2: float
    finished: float
    references: ReferenceMetrics | None


class SystemPrompt(Record):
    """What the system said to the model before ``n`` of the prompts; None where it said nothing."""

    text: str | None
    n: int


class Evaluation(Record):
    """All of it. Models are named by their stages; the candidate comes first in ``models``.

    What is evaluated is the whole system: beside the weights ``sampling``, the form in which prompts are put
    (``prompting``; null: as they are), ``system_prompts`` and the digests of the chat templates by model. ``metrics``
    are by model and name, ``metric_leads`` the candidate's by opponent and name, ``better`` says which way; reward
    functions are among them.
    """

    candidate: str
    opponents: tuple[str, ...]
    reference: str
    judges: dict[str, str]  # name → who it is, in words
    prompts: int
    sampling: Sampling
    prompting: Prompting | None = None
    models: dict[str, ModelMetrics]
    win_rates: tuple[WinRate, ...]
    kl: KlEstimate
    metrics: dict[str, dict[str, Measure]] = Field(default_factory=dict)
    metric_leads: dict[str, dict[str, Difference]] = Field(default_factory=dict)
    better: dict[str, Better | None] = Field(default_factory=dict)
    signatures: dict[str, str] = Field(default_factory=dict)  # of metrics that need one to be repeated: BLEU
    slices: tuple[EvaluationSlice, ...] = ()
    system_prompts: tuple[SystemPrompt, ...] = ()
    templates: dict[str, str] = Field(default_factory=dict)


class EvaluatedPrompt(Record):
    """One held-out prompt: every model's answer, and what each judge made of it (1: the candidate's is better)."""

    prompt_id: str
    kind: str
    prompt: tuple[Message, ...]
    reference: str | None
    texts: dict[str, str]
    finished: dict[str, bool]
    rewards: dict[str, float]  # the reward model's score of each model's answer; empty where there is none
    outcomes: dict[str, dict[str, float]]  # opponent → judge → 1 / 0.5 / 0 for the candidate
    scores: dict[str, dict[str, float]] = Field(default_factory=dict)  # model → reward function → its score
    turns: dict[str, tuple[EpisodeTurn, ...]] = Field(default_factory=dict)  # model → its episode, where it has turns


def evaluation(
    settings: EvaluateStage,
    prompts: Sequence[Prompt],
    answers: Answers,
    outcomes: Outcomes,
    *,
    kl: KlEstimate,
    judges: Mapping[str, str],
    scores: RewardScores | None = None,
    sums: Mapping[str, Mapping[str, Sums]] | None = None,
    templates: Mapping[str, str] | None = None,
) -> Evaluation:
    """Puts the figures together. ``answers``, outcomes, ``scores`` and ``sums`` follow the order of ``prompts``."""
    opponents = tuple(dict.fromkeys(settings.against))
    measured = all_sums(settings, sums or {}, scores or {})
    return Evaluation(
        candidate=settings.model,
        opponents=opponents,
        reference=settings.reference,
        judges=dict(judges),
        prompts=len(prompts),
        sampling=settings.sampling_used(),
        prompting=settings.prompting,
        models={name: model_metrics(prompts, answers[name]) for name in evaluated_models(settings)},
        win_rates=win_rates(settings, prompts, answers, outcomes),
        kl=kl,
        metrics={
            model: {name: estimate(one) for name, one in of_model.items() if one.applies.any()}
            for model, of_model in measured.items()
        },
        metric_leads=leads_of(measured, settings.model),
        better=directions(settings),
        signatures={metric_name(one): bleu([""], [""]).signature for one in settings.metrics if one.kind == "bleu"},
        slices=evaluate_slices(prompts, outcomes, measured, settings.model),
        system_prompts=system_prompts(prompts),
        templates=dict(templates or {}),
    )


def system_prompts(prompts: Sequence[Prompt]) -> tuple[SystemPrompt, ...]:
    """What the system said, most often first."""
    said = [prompt.messages[0].content if prompt.messages[0].role == "system" else None for prompt in prompts]
    return tuple(SystemPrompt(text=text, n=n) for text, n in Counter(said).most_common())


def win_rates(
    settings: EvaluateStage, prompts: Sequence[Prompt], answers: Answers, outcomes: Outcomes
) -> tuple[WinRate, ...]:
    """The win rate against every opponent by every judge: over all prompts, at equal length, and by kind."""
    lengths = {name: [response.tokens for response in responses] for name, responses in answers.items()}
    asked = [prompt.id for prompt in prompts]
    opponents = tuple(dict.fromkeys(settings.against))
    controlled = {
        judge: length_controlled_win_rates({
            opponent: Games(outcomes[opponent][judge], lengths[settings.model], lengths[opponent], asked)
            for opponent in opponents
        })
        for judge in evaluation_judges(settings)
    }  # fmt: skip
    return tuple(
        _win_rate(opponent, judge, prompts, outcomes[opponent][judge], controlled[judge][opponent])
        for opponent in opponents
        for judge in evaluation_judges(settings)
    )


def _win_rate(
    opponent: str, judge: str, prompts: Sequence[Prompt], outcomes: Sequence[float], controlled: Estimate
) -> WinRate:
    by_kind: dict[str, list[float]] = {}
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        by_kind.setdefault(prompt.kind, []).append(outcome)
    assert controlled.low is not None
    assert controlled.high is not None
    return WinRate(
        opponent=opponent,
        judge=judge,
        rate=win_rate(outcomes),
        length_controlled=float(controlled),
        length_controlled_low=controlled.low,
        length_controlled_high=controlled.high,
        kinds={kind: win_rate(part) for kind, part in sorted(by_kind.items())},
    )


def model_metrics(prompts: Sequence[Prompt], answers: Sequence[Response]) -> ModelMetrics:
    """Everything that is counted on one model's answers."""
    texts = [response.text for response in answers]
    lengths = tuple(response.tokens for response in answers)
    return ModelMetrics(
        artifact=answers[0].model,
        length=sum(lengths) / len(lengths),
        lengths=lengths,
        words=mean_words(texts),
        repetition=repetition(texts),
        distinct_2=distinct_n(texts, 2),
        finished=finished_rate([response.finished for response in answers]),
        references=_reference_metrics(prompts, texts),
    )


def _reference_metrics(prompts: Sequence[Prompt], texts: Sequence[str]) -> ReferenceMetrics | None:
    pairs = [(text, p.reference) for p, text in zip(prompts, texts, strict=True) if p.reference is not None]
    if not pairs:
        return None
    found, references = [text for text, _ in pairs], [reference for _, reference in pairs]
    numeric = [(text, reference) for text, reference in pairs if last_number(reference) is not None]
    score, overlap = bleu(found, references), rouge(found, references)
    return ReferenceMetrics(
        n=len(pairs),
        bleu=score.score,
        bleu_signature=score.signature,
        rouge1=overlap.rouge1,
        rouge2=overlap.rouge2,
        rouge_l=overlap.rougeL,
        exact_match=exact_match(found, references),
        numbers=len(numeric),
        number_match=number_match([t for t, _ in numeric], [r for _, r in numeric]) if numeric else None,
    )


def samples(
    prompts: Sequence[Prompt],
    answers: Answers,
    outcomes: Outcomes,
    rewards: Mapping[str, Sequence[float]],
    scores: RewardScores | None = None,
) -> list[EvaluatedPrompt]:
    """One record for each prompt, in their order."""
    return [
        EvaluatedPrompt(
            prompt_id=prompt.id,
            kind=prompt.kind,
            prompt=prompt.messages,
            reference=prompt.reference,
            texts={model: responses[i].text for model, responses in answers.items()},
            finished={model: responses[i].finished for model, responses in answers.items()},
            rewards={model: scores[i] for model, scores in rewards.items()},
            outcomes={
                opponent: {judge: values[i] for judge, values in judged.items()}
                for opponent, judged in outcomes.items()
            },
            scores={
                model: {name: values[i] for name, values in found.items()} for model, found in (scores or {}).items()
            },
            turns={
                model: response.turns
                for model, responses in answers.items()
                for response in responses[i : i + 1]
                if isinstance(response, EpisodeResponse)
            },
        )
        for i, prompt in enumerate(prompts)
    ]


def metrics(settings: EvaluateStage, found: Evaluation, judged: Mapping[str, float] | None = None) -> dict[str, float]:
    """The figures that a gate may ask for, under the names of :func:`evaluation_metric_names` and in their order.

    ``judged`` is what is to be known of an AI judge, where there is one.
    """
    values: dict[str, float] = {"kl": found.kl.value, **(judged or {})}
    for won in found.win_rates:
        prefix = f"win_rate.{won.opponent}.{won.judge}"
        values |= {f"{prefix}.{part}": getattr(won.rate, part) for part in ("value", "low", "high")}
        values |= {
            f"{prefix}.length_controlled": won.length_controlled,
            f"{prefix}.length_controlled.low": won.length_controlled_low,
            f"{prefix}.length_controlled.high": won.length_controlled_high,
        }
    # Rewards and other metrics stand in one table; the names that the settings do not have are left out below.
    tables: dict[str, Mapping[str, Mapping[str, Measure | Difference]]] = {
        "reward": found.metrics, "reward_lead": found.metric_leads,
        "metric": found.metrics, "metric_lead": found.metric_leads,
    }  # fmt: skip
    for what, table in tables.items():
        for model, by_name in table.items():
            for metric, one in by_name.items():
                parts = INTERVAL_PARTS if one.n > 1 else INTERVAL_PARTS[:1]  # one prompt alone has no interval
                values |= {f"{what}.{model}.{metric}.{part}": getattr(one, part) for part in parts}
    for name, of_model in found.models.items():
        values |= {
            f"length.{name}": of_model.length,
            f"repetition.{name}": of_model.repetition,
            f"distinct_2.{name}": of_model.distinct_2,
            f"finished.{name}": of_model.finished,
        }
    return {name: values[name] for name in evaluation_metric_names(settings) if name in values}

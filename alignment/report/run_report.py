"""What a run's report holds: ``report.json`` is this model, and ``report.html`` is drawn from nothing else."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from alignment.evaluation.gate import GateVerdict
from alignment.evaluation.leaderboard import Leaderboard
from alignment.judges.report import JudgeReport
from alignment.preferences.ai_feedback_report import ConstitutionFigures, SynthesisFigures
from alignment.records import ArtifactRef, EpisodeTurn, Record

Curve = tuple[tuple[int, float], ...]
Verdict = Literal["win", "tie", "loss"]


class StageReport(Record):
    """One stage of the run. ``work_seconds`` is inside trainer, sampler or evaluator, in this run: 0 where cached."""

    name: str
    kind: str
    status: str  # "completed", "failed" or "skipped"
    cached: bool
    seconds: float
    work_seconds: float
    inputs: tuple[ArtifactRef, ...] = ()
    outputs: tuple[ArtifactRef, ...] = ()
    metrics: Mapping[str, float] = Field(default_factory=dict)
    alarms: tuple[str, ...] = ()  # what training said about itself: see alignment.policy.alarms
    error: str = ""


class Cost(Record):
    """What something took: seconds of processors, and tokens."""

    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    tokens_trained: int = 0
    tokens_sampled: int = 0


class Interval(Record):
    """A figure and the ends of its 95 % interval, where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


class WinRateReport(Record):
    """The candidate's share of wins (ties half) against one opponent by one judge, with its 95 % interval."""

    opponent: str
    judge: str
    judged_by: str
    value: float
    low: float
    high: float
    length_controlled: Interval | None = None


class Answer(Record):
    """One model's answer to a held-out prompt; ``turns`` are its episode's where an environment answered it."""

    model: str
    text: str
    finished: bool  # False: cut off at the longest length allowed
    turns: tuple[EpisodeTurn, ...] = ()
    scores: Mapping[str, float] = Field(default_factory=dict)  # by reward function, of an episode


class JudgedAnswer(Record):
    """How the candidate's answer fared against one opponent's, by one judge."""

    opponent: str
    judge: str
    outcome: Verdict


class Sample(Record):
    """A held-out prompt and what each model answered, earliest model first."""

    prompt: str
    kind: str
    reference: str | None
    answers: tuple[Answer, ...]
    judgements: tuple[JudgedAnswer, ...]


class Tally(Record):
    """Wins, ties and losses of the candidate."""

    win: int = 0
    tie: int = 0
    loss: int = 0


class FigureReport(Record):
    """A metric of one model, or the candidate's lead over an opponent, with its 95 % interval over ``n`` prompts."""

    value: float
    low: float
    high: float
    n: int

    @property
    def open(self) -> bool:
        """Whether the interval crosses zero: then nothing may be said of a lead."""
        return self.n < 2 or self.low <= 0 <= self.high


class SliceReport(Record):
    """A part of the prompts (or pairs): how often the candidate wins there, and each metric's lead, by opponent."""

    by: str
    value: str
    n: int
    win_rates: Mapping[str, FigureReport]  # by opponent, of the first judge
    metrics: Mapping[str, FigureReport]  # of the candidate
    leads: Mapping[str, Mapping[str, FigureReport]]  # by opponent and metric


class SystemReport(Record):
    """What was evaluated beside the weights: digests of ``templates`` by model; the system's ``prompts``, counted."""

    sampling: Mapping[str, Any]
    templates: Mapping[str, str]
    prompts: tuple[tuple[str | None, int], ...]


class EvaluationReport(Record):
    """The evaluation: win rates, figures per model, and what they were counted from.

    ``lengths`` are generated tokens per answer; ``kl`` is in nats per answer, from ``reference``. ``by_kind`` counts
    against ``opponent`` by ``judge``, the first of each.
    """

    candidate: str
    prompts: int
    win_rates: tuple[WinRateReport, ...]
    kl: Interval | None
    reference: str
    models: Mapping[str, Mapping[str, float]]
    lengths: Mapping[str, tuple[int, ...]]
    opponent: str | None
    judge: str | None
    by_kind: Mapping[str, Tally]
    metrics: Mapping[str, Mapping[str, FigureReport]] = Field(default_factory=dict)  # by model and name
    leads: Mapping[str, Mapping[str, FigureReport]] = Field(
        default_factory=dict
    )  # the candidate's, by opponent and name
    better: Mapping[str, str | None] = Field(default_factory=dict)
    signatures: Mapping[str, str] = Field(default_factory=dict)
    slices: tuple[SliceReport, ...] = ()
    system: SystemReport | None = None
    prompts_file: str | None = None  # the held-out prompts' own, where they have one
    trained: bool = False  # the prompts are of the training split


class StandingReport(Record):
    """One player of a tournament. ``rate`` is its win rate against the start, None for the start itself, and
    ``length_controlled`` what it would be if answers were equally long.

    ``kl`` is in nats an answer from the start; ``kl_bound`` marks a bound in a measurement's place. ``model`` is False
    for a way of sampling, which cannot be promoted.
    """

    player: str
    rate: Interval | None
    length_controlled: Interval | None = None
    rating: Interval
    kl: float
    kl_bound: bool
    model: bool
    length: float


class TournamentReport(Record):
    """A tournament's ranking, best first."""

    stage: str
    start: str
    winner: str
    prompts: int
    judge: str
    standings: tuple[StandingReport, ...]


class WayPoint(Record):
    """A policy at one step (or n, of best-of-n): rewards in standard deviations of the start's answers."""

    step: int
    kl: float
    proxy: Interval
    true: Interval


class Way(Record):
    """How one policy went from the start: its points, and what their intervals allow to be said."""

    words: str
    best_step: int
    best_kl: float
    rise: Interval
    fall: Interval
    points: tuple[WayPoint, ...]


class OveroptimisationReport(Record):
    """True and proxy reward against distance, policy by policy."""

    stage: str
    start: str
    prompts: int
    judge: str
    ways: Mapping[str, Way]


class PromptTurn(Record):
    """A turn of a prompt, as it was put."""

    role: str
    content: str


class BenchmarkRow(Record):
    """A form of prompt, put to a model. ``behind`` is by how much the model's best form is ahead; None for that one."""

    model: str
    form: str
    described: str
    right: Interval
    behind: Interval | None
    best: bool
    unread: float
    prompt_tokens: float
    answer_tokens: float


class BenchmarkTask(Record):
    """A task's table, and a prompt of each form."""

    name: str
    questions: int
    said: str
    rows: tuple[BenchmarkRow, ...]
    prompts: Mapping[str, tuple[PromptTurn, ...]]


class BenchmarkReport(Record):
    """A benchmark, task by task."""

    stage: str
    tasks: tuple[BenchmarkTask, ...]


class ReliabilityRow(Record):
    """Of ``n`` predictions: what they said and what happened, as means."""

    n: int
    confidence: float
    accuracy: float


class RewardReport(Record):
    """A reward model on held-out pairs. ``margins`` are chosen minus rejected scores, in the model's own units."""

    stage: str
    accuracy: float
    low: float
    high: float
    margins: tuple[float, ...]
    reliability: tuple[ReliabilityRow, ...]
    ece: Interval | None = None  # without the bias of few pairs
    slices: tuple[SliceReport, ...] = ()


class PreferenceReport(Record):
    """Where the preferences came from. ``agreement`` is the mean share of votes on the winner's side, 0 … 1."""

    stage: str
    raters: str  # a sentence, which calls simulated raters simulated
    simulated: bool
    figures: Mapping[str, float]


class Edge(Record):
    """One artifact was used to make another. ``role`` says how; "" where it is only an adapter's base."""

    source: str
    target: str
    role: str


class Node(ArtifactRef):
    """An artifact of the lineage."""

    label: str = ""  # what else to say of it: the version it was registered as


class LineageReport(Record):
    """The lineage as it is drawn: nodes after their inputs, edges by ``name@version``."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


class Registered(Record):
    """The version that the run's candidate became."""

    name: str
    version: int
    aliases: tuple[str, ...]
    folder: str


class Command(Record):
    """Something to do next, and the line that does it."""

    purpose: str
    line: str


class RunReport(Record):
    """A run, whole. Parts that the recipe does not have, or that the run did not reach, are None or empty."""

    run: str
    recipe_name: str
    description: str = ""
    recipe_digest: str
    commit: str | None
    started: datetime
    finished: datetime
    seconds: float
    stages: tuple[StageReport, ...]
    gate: GateVerdict | None
    cost: Cost  # of this run's own work
    cost_with_cached: Cost  # of everything the result rests on, cached stages included
    base: str
    recipe: str  # as resolved, YAML
    registered: Registered | None = None
    lineage: LineageReport | None = None
    evaluation: EvaluationReport | None = None
    tournaments: tuple[TournamentReport, ...] = ()
    overoptimisations: tuple[OveroptimisationReport, ...] = ()
    benchmarks: tuple[BenchmarkReport, ...] = ()
    leaderboard: Leaderboard | None = None
    rewards: tuple[RewardReport, ...] = ()
    preferences: tuple[PreferenceReport, ...] = ()
    judges: Mapping[str, JudgeReport] = Field(default_factory=dict)  # by the stage that asked them
    uncalibrated: tuple[str, ...] = ()  # stages that train on a judge whose agreement with raters nobody measured
    constitutions: Mapping[str, ConstitutionFigures] = Field(default_factory=dict)  # by stage
    syntheses: Mapping[str, SynthesisFigures] = Field(default_factory=dict)  # by stage
    curves: Mapping[str, Mapping[str, Curve]] = Field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    samples_chosen: str = ""  # how, in a sentence
    commands: tuple[Command, ...] = ()
    absent: Mapping[str, str] = Field(default_factory=dict)  # part → why it is not there

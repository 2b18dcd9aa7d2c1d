"""A run as the quickstart leaves it: artifacts whose files the evaluation's own code wrote, figures made up."""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from alignment.data.prompts import read_prompts
from alignment.durable_files import folder_digest
from alignment.evaluation.calibration import calibration_error, pair_accuracy, pair_predictions, reliability
from alignment.evaluation.gate import decide
from alignment.evaluation.slices import accuracy_slices
from alignment.metrics.kl import mean_kl
from alignment.metrics.measure import measure
from alignment.metrics.results import evaluation, metrics, samples
from alignment.recipe.graph import stage_inputs
from alignment.recipe.load import dump_recipe, load_recipe, recipe_digest
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.records import Artifact, Message, PreferencePair, Prompt, Response, Sampling
from alignment.report import build_report
from alignment.report.run_report import Command, Registered, RunReport
from alignment.workspace import Workspace

QUICKSTART = Path(__file__).parents[3] / "flows" / "recipes" / "quickstart.yaml"
METRICS = (
    "[bleu, rouge, exact_match, length, {kind: distinct, ngram: 2}, refusal, readability, {kind: repetition, ngram: 2}]"
)
STARTED = datetime(2026, 11, 23, 9, 14, tzinfo=UTC)
RAMBLE = (
    "That is a great question! There are many things to consider here, and I will try to explain them step by step. "
    "First of all, it is important to know that the answer depends on the context, and that opinions differ. "
)
SECONDS = {
    "base": 19.4,
    "sft": 148.0,
    "responses": 96.0,
    "preferences": 3.1,
    "reward": 121.0,
    "dpo": 167.0,
}


@dataclass
class Outcome:
    name: str
    kind: str
    status: str
    cached: bool
    seconds: float
    artifact: Artifact | None
    error: str = ""


@dataclass
class FinishedRun:
    """Everything :func:`build_report` is given."""

    workspace: Workspace
    recipe: Recipe
    artifacts: dict[str, Artifact]
    outcomes: list[Outcome]

    def fail_at(self, stage: str, error: str) -> None:
        """Lets the run end in a stage that failed."""
        names = [outcome.name for outcome in self.outcomes]
        last = names.index(stage)
        failed = Outcome(stage, self.outcomes[last].kind, "failed", False, 12.0, None, error)
        self.outcomes = [*self.outcomes[:last], failed]
        self.artifacts = {name: artifact for name, artifact in self.artifacts.items() if name in names[:last]}

    def report(self, *, refused: bool = False, registered: bool = True, **changes: object) -> RunReport:
        gate = self.recipe.gate
        verdict = (
            decide(gate, self.artifacts[gate.evaluation].metrics) if gate and "evaluation" in self.artifacts else None
        )
        if refused and verdict:
            worse = dict(self.artifacts["evaluation"].metrics) | {"win_rate.base.rubric.low": 0.46}
            verdict = decide(gate, worse) if gate else None
        alias = () if verdict is None else ("champion",) if verdict.passed else ("candidate",)
        folder = str(self.workspace.root / "registry/policy/v3")
        entry = Registered(name="policy", version=3, aliases=alias, folder=folder) if verdict and registered else None
        seconds = sum(outcome.seconds for outcome in self.outcomes)
        return build_report(
            self.workspace, self.recipe, self.artifacts, self.outcomes, run="quickstart-1",
            recipe_text=dump_recipe(self.recipe), recipe_digest=recipe_digest(self.recipe), commit="1a7bcb6d" * 5,
            started=STARTED, finished=STARTED + timedelta(seconds=seconds), verdict=verdict, registered=entry,
            commands=[
                Command(purpose="Chat with this version", line="rlhf chat policy/3 --workspace workspace"),
                Command(purpose="Run the same again", line="rlhf run workspace/runs/quickstart-1/recipe.yaml"),
                Command(purpose="See the whole lineage", line="rlhf models show policy/3 --workspace workspace --json"),
            ],
            work_seconds={"base": 18.1, "register": 2.0},
        ).model_copy(update=changes)  # fmt: skip


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return make_finished_run(tmp_path_factory.mktemp("run") / "workspace")


@pytest.fixture
def finished_run(made_once: FinishedRun) -> FinishedRun:
    """A run to take apart: its files are shared, its lists are not."""
    return replace(made_once, artifacts=dict(made_once.artifacts), outcomes=list(made_once.outcomes))


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., FinishedRun]:
    return lambda **options: make_finished_run(tmp_path / "workspace", **options)


def make_finished_run(root: Path, prompts: list[Prompt] | None = None) -> FinishedRun:
    """The quickstart's recipe, with every stage's artifact. ``prompts`` replace the held-out ones."""
    recipe = load_recipe(QUICKSTART, [f"stages.evaluation.metrics={METRICS}"])
    rng = random.Random(5)
    held_out = prompts or read_prompts(QUICKSTART.parent / str(recipe.data.held_out_prompts))
    run = FinishedRun(Workspace(root), recipe, {}, [])
    base_folder = run.workspace.folder("models", "base")
    (base_folder / "config.json").write_text("{}")
    base = Artifact(
        name="base", kind="model", version=1, digest=folder_digest(base_folder), path=str(base_folder),
        key="embedded:smollm2-135m",
    )  # fmt: skip
    _done(run, "base", "base", base)
    add = _adder(run)
    add(
        "sft",
        "model",
        {"curves.json": _curve(rng, 3.1, 1.42, 24)},
        {"loss": 1.42, "demonstrations": 96.0},
        trained=9_412,
    )
    add("responses", "responses", {}, {"prompts": 192.0, "responses": 768.0, "mean_tokens": 27.4}, sampled=21_043)
    figures = {"comparisons": 192, "votes": 576, "pairs": 131, "ties": 118, "both_bad": 21, "agreement": 0.871,
               "krippendorff_alpha": 0.612, "chosen_words": 14.2, "rejected_words": 24.9}  # fmt: skip
    add("preferences", "preferences", {}, {name: float(value) for name, value in figures.items()})
    held_files, reward_metrics = _held_out_pairs(rng)
    add(
        "reward",
        "reward_model",
        {"curves.json": _curve(rng, 0.78, 0.46, 14)} | held_files,
        reward_metrics,
        trained=11_830,
    )
    add("dpo", "model", {"curves.json": _curve(rng, 0.6931, 0.52, 17)},
        {"loss": 0.52, "rewards/accuracies": 0.81, "pairs": 131.0}, trained=13_507)  # fmt: skip
    files, values = _evaluation_files(recipe, held_out, rng)
    add("evaluation", "evaluation", files, values, sampled=8_216)
    run.outcomes.append(Outcome("register", "register", "completed", False, 2.6, None))
    return run


def _adder(run: FinishedRun) -> Callable[..., None]:
    def add(
        name: str, kind: str, files: Mapping[str, str], values: dict[str, float], trained: int = 0, sampled: int = 0
    ) -> None:
        stage = run.recipe.stages[name]
        inputs = {"base"} | {source for sources in stage_inputs(stage).values() for source in sources}
        output = run.workspace.folder("partial") / name
        output.mkdir()
        for file, text in {"files.txt": name, **files}.items():
            (output / file).write_text(text)
        seconds = SECONDS.get(name, 58.0)
        draft = Artifact(
            name=name, kind=kind, version=1, digest=folder_digest(output), path=str(output), key=name,
            inputs={source: run.artifacts[source].ref() for source in sorted(inputs)}, metrics=values,
            seconds=seconds, work_seconds=seconds * 0.93, cpu_seconds=seconds * 1.9, tokens_trained=trained,
            tokens_sampled=sampled,
        )  # fmt: skip
        _done(run, name, stage.kind, run.workspace.publish(draft, output))

    return add


def _done(run: FinishedRun, name: str, kind: str, artifact: Artifact) -> None:
    run.artifacts[name] = artifact
    run.outcomes.append(Outcome(name, kind, "completed", False, SECONDS.get(name, 58.0), artifact))


def _curve(rng: random.Random, start: float, end: float, steps: int) -> str:
    fall = [end + (start - end) * 0.84**step + rng.gauss(0, 0.03) * (step > 0) for step in range(steps)]
    return json.dumps({"loss": [[step + 1, value] for step, value in enumerate(fall)]})


def _held_out_pairs(rng: random.Random) -> tuple[dict[str, str], dict[str, float]]:
    margins = [rng.gauss(1.1, 1.2) for _ in range(34)]
    scores = [rng.gauss(0, 1) for _ in margins]
    chosen = [score + margin for score, margin in zip(scores, margins, strict=True)]
    accuracy = pair_accuracy(chosen, scores)
    probabilities = [1 / (1 + 2.718281828 ** -(margin * side)) for margin in margins for side in (1, -1)]
    table = reliability(probabilities, [1.0, 0.0] * len(margins))
    slices = [
        one.model_dump(mode="json") for one in accuracy_slices([_pair(rng, i) for i in range(len(margins))], margins)
    ]
    error = calibration_error(*(side.tolist() for side in pair_predictions(chosen, scores)))
    detail = {"margins": margins, "chosen": chosen, "rejected": scores, "reliability": table, "slices": slices}
    figures = {"accuracy": accuracy.value, "accuracy.low": accuracy.low, "accuracy.high": accuracy.high, "loss": 0.46}
    figures |= {"ece": 0.11, "ece.debiased": error.value, "ece.low": error.low, "ece.high": error.high}
    return {"held_out.json": json.dumps(detail)}, figures | {"pairs": 97.0, "held_out_pairs": 34.0}


def _pair(rng: random.Random, number: int) -> PreferencePair:
    asked = (Message(role="user", content="word " * rng.choice([5, 20, 80])),)
    chosen, rejected = ("word " * rng.randint(1, 9) for _ in range(2))
    kind = rng.choice(["how_to", "question"])
    return PreferencePair(
        id=str(number), prompt_id=str(number), prompt=asked, chosen=chosen, rejected=rejected, kind=kind
    )


def _evaluation_files(
    recipe: Recipe, prompts: list[Prompt], rng: random.Random
) -> tuple[dict[str, str], dict[str, float]]:
    settings = recipe.stages["evaluation"]
    assert isinstance(settings, EvaluateStage)
    answers = {model: [_answer(model, prompt, rng) for prompt in prompts] for model in ("dpo", "base", "sft")}
    chances = {"base": (0.77, 0.1), "sft": (0.42, 0.36)}
    outcomes = {
        opponent: {
            judge: [1.0 if (u := rng.random()) < win else 0.5 if u < win + tie else 0.0 for _ in prompts]
            for judge in ("rubric", "reward")
        }
        for opponent, (win, tie) in chances.items()
    }
    rewards = {model: [rng.gauss(0, 1) for _ in prompts] for model in answers}
    judges = {"rubric": "3 simulated raters that follow quickstart/rubric.yaml", "reward": "the reward model reward@1"}
    kl = mean_kl([rng.gauss(21, 6) for _ in range(16)], max_new_tokens=64)
    sums = {model: measure(settings.metrics, prompts, given) for model, given in answers.items()}
    templates = dict.fromkeys(answers, "5a2f" * 16)
    found = evaluation(
        settings, prompts, answers, outcomes, kl=kl, judges=judges, sums=sums, templates=templates
    )  # fmt: skip
    lines = [sample.model_dump_json() for sample in samples(prompts, answers, outcomes, rewards)]
    return {"evaluation.json": found.model_dump_json(), "samples.jsonl": "\n".join(lines) + "\n"}, metrics(
        settings, found
    )


def _answer(model: str, prompt: Prompt, rng: random.Random) -> Response:
    short = prompt.reference or "It depends on what you need; start with the simplest way."
    text = short if model == "dpo" else (f"Sure! {short}" if model == "sft" else RAMBLE + short)
    tokens = min(64, round(len(text.split()) * 1.3 * rng.uniform(0.7, 1.4)) + 1)
    return Response(
        id=f"{model}-{prompt.id}", prompt_id=prompt.id, text=text, model=f"{model}@1:0123456789ab", sampling=Sampling(),
        seed=1, tokens=tokens, finished=tokens < 64,
    )  # fmt: skip

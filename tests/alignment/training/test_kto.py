"""KTO: its file of thumbs, its mismatched answers, its first step, and its loss against TRL's own and by hand."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from alignment.checks.data import data_faults, read_data
from alignment.data.feedback import feedback_of_pairs, numbered_feedback, scan_feedback, write_feedback
from alignment.data.jsonl import write_records
from alignment.durable_files import folder_digest
from alignment.errors import StageError
from alignment.models.adapters import add_lora
from alignment.models.load import load_policy
from alignment.recipe.base import Lora
from alignment.recipe.files import resolve_data
from alignment.recipe.load import load_recipe
from alignment.recipe.stages.preference.kto import KtoStage
from alignment.records import Artifact, PreferencePair
from alignment.stage import StageContext
from alignment.stages.kto import run
from alignment.training.arguments import trainer_arguments
from alignment.training.dropout import switch_off_dropout
from alignment.training.invariants import check_first_kto_step
from alignment.training.preference.kto_trainer import MarkedAnswer, kto_columns
from alignment.training.setup import seed_everything
from tests.alignment.conftest import tiny_pairs

MakeContext = Callable[..., StageContext]
SETTINGS = {
    "kind": "kto", "model": "base", "preferences": "preferences", "epochs": 3, "batch_size": 48, "learning_rate": 1e-2,
    "warmup": 0, "schedule": "constant", "beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.8,
}  # fmt: skip


def curve(context: StageContext, name: str = "loss") -> list[float]:
    return [value for _step, value in json.loads((context.output / "curves.json").read_text())[name]]


@pytest.fixture
def stage(base: Artifact, preferences: Artifact, make_context: MakeContext, tmp_path: Path) -> Any:
    """The context of KTO on the hand-made pairs."""

    def make(**settings: Any) -> StageContext:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        inputs = {"base": base, "preferences": preferences}
        return make_context(folder, "kto", inputs, settings=SETTINGS | settings)

    return make


def train(context: StageContext) -> Any:
    return run(context.recipe.stages["kto"], context)  # type: ignore[attr-defined]


class Columns:
    """The columns that a stage gave to its trainer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[dict[str, Any]] = []

        def noted(*arguments: Any, **options: Any) -> list[dict[str, Any]]:
            self.rows = kto_columns(*arguments, **options)
            return self.rows

        monkeypatch.setattr("alignment.stages.kto.kto_columns", noted)


def of_trl(context: StageContext, rows: list[dict[str, Any]]) -> list[float]:
    """The losses of TRL's own trainer on the same rows, weights and seed, with its own head and no changes."""
    from trl import KTOConfig, KTOTrainer

    class Untouched(KTOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    settings: Any = context.recipe.stages["kto"]  # type: ignore[attr-defined]
    seed_everything(context.run)
    base = context.inputs["base"]
    model, tokenizer = load_policy(base, base, context.run, trainable=True)
    model = add_lora(model, Lora.model_validate(settings.lora.model_dump()))
    switch_off_dropout(model)
    arguments = trainer_arguments(settings, context) | {
        "output_dir": str(context.checkpoints / "trl"), "lr_scheduler_type": "constant", "warmup_steps": 0,
    }  # fmt: skip
    weights = {"desirable_weight": settings.desirable_weight, "undesirable_weight": settings.undesirable_weight}
    trainer = Untouched(
        model=model, args=KTOConfig(**arguments, beta=settings.beta, **weights), train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def answer_logprob(model: Any, prompt: list[int], answer: list[int]) -> float:
    with torch.inference_mode():
        found = model(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return sum(float(found[len(prompt) + place - 1, token]) for place, token in enumerate(answer))


def test_its_steps_are_trls_and_the_papers(stage: Any, base: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps against TRL's trainer; the second by hand: eq. 7 and the KL of the mismatched answers."""
    seen = Columns(monkeypatch)
    context = stage()
    result = train(context)
    losses = curve(context)
    assert losses == pytest.approx(of_trl(context, seen.rows), abs=1e-5)
    assert losses[0] == pytest.approx(0.5 * (24 * 1.2 + 24 * 0.8) / 48, abs=1e-5)
    assert curve(context, "kl")[0] == pytest.approx(0, abs=1e-5)
    assert losses[-1] < losses[0]
    assert curve(context, "rewards/margins")[-1] > 0
    assert (result.metrics["answers"], result.metrics["desirable"]) == (48, 24)

    once = stage(epochs=1)
    train(once)
    folder = str(once.output)
    trained = Artifact(name="kto", kind="model", version=1, digest=folder_digest(once.output), path=folder, key="kto")
    policy, _tokenizer = load_policy(trained, base, once.run)
    start, _tokenizer = load_policy(base, base, once.run)

    def ratio(row: dict[str, Any], column: str) -> float:
        prompt, answer = row["prompt_ids"], row[column]
        return answer_logprob(policy, prompt, answer) - answer_logprob(start, prompt, answer)

    kl = max(0.0, sum(ratio(row, "KL_completion_ids") for row in seen.rows) / len(seen.rows))
    assert curve(context, "kl")[1] == pytest.approx(kl, abs=2e-3)

    def value(row: dict[str, Any]) -> float:
        lead = (ratio(row, "completion_ids") - kl) * (1 if row["label"] else -1)
        return (1.2 if row["label"] else 0.8) * (1 - 1 / (1 + math.exp(-0.3 * lead)))

    assert losses[1] == pytest.approx(sum(map(value, seen.rows)) / len(seen.rows), abs=1e-3)


def test_mismatched_answers_are_to_other_prompts_of_the_same_batch() -> None:
    answers = [MarkedAnswer([prompt], [10 * prompt + label], bool(label)) for prompt in (1, 2, 3) for label in (1, 0)]
    rows = kto_columns(answers, 4, mismatched=True)
    # Batches: 1 1 2 2 and 3 3. The last has one prompt alone, and looks before it.
    assert [row["KL_completion_ids"] for row in rows] == [[20], [20], [10], [10], [20], [20]]
    assert "KL_completion_ids" not in kto_columns(answers, 4, mismatched=False)[0]
    alone = kto_columns(answers[:2], 2, mismatched=True)
    assert [row["KL_completion_ids"] for row in alone] == [[10], [11]]


def test_thumbs_of_a_file_train_as_the_pairs_that_they_came_from(stage: Any, tmp_path: Path) -> None:
    folder = tmp_path / "thumbs"
    folder.mkdir()
    path = folder / "thumbs.jsonl"
    write_feedback(path, feedback_of_pairs(tiny_pairs()))
    pairs, thumbs = stage(epochs=1), stage(epochs=1, preferences=None)
    thumbs.data = {**thumbs.data, "feedback": path}
    assert train(pairs).metrics["answers"] == train(thumbs).metrics["answers"] == 48
    assert curve(thumbs) == curve(pairs)


def test_peoples_thumbs_train_as_the_same_in_a_file(stage: Any, preferences: Artifact, tmp_path: Path) -> None:
    feedback = feedback_of_pairs(tiny_pairs())
    write_records(tmp_path / "thumbs" / "feedback.jsonl", feedback)
    write_feedback(tmp_path / "thumbs.jsonl", feedback)
    given = preferences.model_copy(update={"name": "thumbs", "kind": "feedback", "path": str(tmp_path / "thumbs")})
    people, file = stage(epochs=1, preferences=None, feedback="thumbs"), stage(epochs=1, preferences=None)
    people.inputs = {"base": people.inputs["base"], "thumbs": given}
    file.data = {**file.data, "feedback": tmp_path / "thumbs.jsonl"}
    assert train(people).metrics["answers"] == train(file).metrics["answers"] == 48
    assert curve(people) == curve(file)
    with pytest.raises(ValueError, match="leave one out"):
        KtoStage(kind="kto", model="base", preferences="pairs", feedback="thumbs")


def test_a_file_of_thumbs_is_read_in_each_form(tmp_path: Path) -> None:
    path = tmp_path / "thumbs.jsonl"
    rows = [
        {"prompt": "Why?", "completion": "So.", "label": True},
        {"prompt": [{"role": "user", "content": "Why?"}], "completion": [{"role": "assistant", "content": "So."}],
         "label": True},
        {"prompt": "Why?", "completion": "So.", "label": False, "finished": False, "kind": "doubt"},
        {"prompt": "Why?", "completion": "Because", "label": True, "finished": False},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, duplicates = numbered_feedback(path)
    assert duplicates == 1  # the second says what the first does
    assert [(row, one.completion, one.label, one.finished) for row, one in found] == [
        (1, "So.", True, True), (3, "So.", False, False), (4, "Because", True, False),
    ]  # fmt: skip
    write_feedback(tmp_path / "again.jsonl", [one for _row, one in found])
    again = [one for _row, one in numbered_feedback(tmp_path / "again.jsonl")[0]]
    assert [(one.completion, one.label, one.finished) for one in again] == [
        (one.completion, one.label, one.finished) for _row, one in found
    ]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": "Why?", "completion": "So.", "label": 1}, "2:label: not true or false; "
         "write true for a good answer and false for a bad one"),
        ({"prompt": "Why?", "completion": "So.", "label": "true"}, "2:label: not true or false; "
         "write true for a good answer and false for a bad one"),
        ({"prompt": "Why?", "completion": "", "label": True}, "2:completion: empty; write the text, or remove the row"),
        ({"prompt": "Why?", "completion": 3, "label": True}, "2:completion: int, not text; "
         "write text, or remove the row"),
        ({"prompt": None, "completion": "So.", "label": True}, "2:prompt: null, not text; "
         "write text, or remove the row"),
        ({"prompt": "Why?", "completion": "So.", "label": True, "finished": "no"}, "2:finished: not true or false; "
         "write false for an answer that was cut off, or leave it out"),
        ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, "2:completion: no completion and label among the "
         "columns prompt, chosen and rejected; name them prompt, completion and label; pairs of chosen and rejected "
         "are read as data.preferences"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_one_line(row: dict[str, Any], fault: str, tmp_path: Path) -> None:
    path = tmp_path / "thumbs.jsonl"
    path.write_text(json.dumps({"prompt": "Who?", "completion": "She.", "label": True}) + "\n" + json.dumps(row) + "\n")
    found, _duplicates, faults = scan_feedback(path)
    assert [str(one) for one in faults] == [f"{path}:{fault}"]
    assert len(found) == 1


def test_check_finds_a_missing_file_one_kind_alone_and_a_leak(make_recipe: Any, tmp_path: Path) -> None:
    kto = {"kind": "kto", "model": "base"}
    path = make_recipe(tmp_path, stages=("sft",), changes={"stages.kto": kto})

    def faults() -> list[str]:
        recipe = load_recipe(path)
        files = resolve_data(recipe, path)
        data, unreadable = read_data(recipe, files)
        return [str(fault) for fault in [*unreadable, *data_faults(recipe, files, data)]]

    assert faults() == ["data.feedback: not set, and the stage kto reads it; set data.feedback to a file"]
    thumbs = tmp_path / "thumbs.jsonl"
    thumbs.write_text('{"prompt": "Who?", "completion": "She.", "label": false}\n')
    path = make_recipe(tmp_path, stages=("sft",), changes={"stages.kto": kto, "data.feedback": "thumbs.jsonl"})
    assert faults() == [f"{thumbs}:label: label is false in every row; add answers of the other kind"]


def test_one_kind_of_answers_ends_the_stage(stage: Any, tmp_path: Path) -> None:
    folder = tmp_path / "good"
    folder.mkdir()
    write_feedback(folder / "thumbs.jsonl", [one for one in feedback_of_pairs(tiny_pairs()) if one.label])
    context = stage(preferences=None)
    context.data = {**context.data, "feedback": folder / "thumbs.jsonl"}
    with pytest.raises(StageError, match="every answer that is left to train on is good, and KTO needs both kinds"):
        train(context)
    with pytest.raises(StageError, match="every prompt alone fills max_length=4 tokens"):
        train(stage(max_length=4))


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"kl": 0.2}, "kl is 0.20000 where it is 0.00000"),
        ({"rewards/chosen": -0.1}, "rewards/chosen is -0.10000 where it is 0.00000"),
        ({"loss": 0.7}, "loss is 0.70000 where it is between 0.50000 and 0.60000"),
        ({"loss": math.nan}, "loss is nan"),
    ],
)
def test_a_first_step_that_cannot_be_stops_the_stage(metrics: dict[str, float], said: str) -> None:
    check_first_kto_step({"kl": 1e-5, "rewards/chosen": 0.0, "rewards/rejected": -1e-5, "loss": 0.55}, (1.2, 1.0))
    with pytest.raises(StageError, match=said):
        check_first_kto_step(metrics, (1.2, 1.0))


def test_pairs_give_each_marked_answer_once() -> None:
    first, *_rest = tiny_pairs(1)
    other = PreferencePair.model_validate(
        first.model_dump() | {"id": "2", "rejected": "No.", "rejected_finished": False}
    )
    found = feedback_of_pairs([first, other, first])
    assert [(one.completion, one.label, one.finished) for one in found] == [
        (first.chosen, True, True), (first.rejected, False, True), ("No.", False, False),
    ]  # fmt: skip


def test_good_answers_that_were_cut_off_are_named_where_none_is_left(stage: Any, tmp_path: Path) -> None:
    given = feedback_of_pairs(tiny_pairs())
    cut = [one.model_copy(update={"finished": False}) if one.label else one for one in given]
    (tmp_path / "cut").mkdir()
    write_feedback(tmp_path / "cut" / "thumbs.jsonl", cut)
    context = stage(preferences=None)
    context.data = {**context.data, "feedback": tmp_path / "cut" / "thumbs.jsonl"}
    good = sum(one.label for one in given)
    with pytest.raises(StageError, match=rf"is bad, and KTO needs both kinds; {good} good ones were cut off and left"):
        train(context)

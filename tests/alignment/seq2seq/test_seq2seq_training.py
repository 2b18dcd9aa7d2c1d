"""SFT and DPO of encoder-decoders, held against the plain class's own loss and against bare loops."""

import contextlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from alignment.data.jsonl import write_records
from alignment.durable_files import folder_digest
from alignment.errors import StageError
from alignment.models.base_model import prepare_base
from alignment.models.export import export_merged
from alignment.models.load import load_policy
from alignment.recipe.run_settings import ModelSettings
from alignment.recipe.stages.preference.kto import KtoStage
from alignment.records import Artifact, PreferencePair
from alignment.stage import Progress, StageContext
from alignment.stages import dpo, sft
from alignment.training.policy import begin_policy
from alignment.workspace import Workspace
from tests.alignment.conftest import artifact_of, curve, tiny_pairs
from tests.conftest import demonstration_rows
from tests.tiny_seq2seq import FAMILIES, write_seq2seq

MakeContext = Callable[..., StageContext]
NO_DROPOUT = {"dropout_rate": 0.0, "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
PLAIN: dict[str, Any] = {
    "lora": None, "batch_size": 64, "max_length": 192, "warmup": 0.0, "schedule": "constant", "learning_rate": 1e-3,
    "checkpoint_every": 1000, "max_grad_norm": 1e9,
}  # fmt: skip
BETA = 0.1


def base_of(name: str, folder: Path, **changes: Any) -> Artifact:
    changes = {key: value for key, value in changes.items() if (key == "dropout_rate") == (name == "t5")}
    model = write_seq2seq(folder / "model", name, **changes)
    return prepare_base(Workspace(folder / "space"), ModelSettings(base=str(model)))


def run(kind: str, context: StageContext) -> Any:
    return {"sft": sft, "dpo": dpo}[kind].run(context.recipe.stages[kind], context)  # type: ignore[attr-defined]


def padded(rows: list[list[int]], value: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def inputs_of(tokenizer: Any, prompts: list[str], answers: list[str], *, cut: tuple[int, ...] = ()) -> dict[str, Any]:
    """A plain batch of the tokenizer's own: the answers whose places are in ``cut`` have no end."""
    asked = tokenizer(prompts, padding=True, return_tensors="pt")
    targets = [list(ids) for ids in tokenizer(text_target=answers)["input_ids"]]
    targets = [ids[:-1] if place in cut else ids for place, ids in enumerate(targets)]
    return {"input_ids": asked["input_ids"], "attention_mask": asked["attention_mask"],
            "labels": padded(targets, -100)}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_sft_is_the_plain_classs_loss_and_its_steps(name: str, make_context: MakeContext, tmp_path: Path) -> None:
    """Three steps of one batch, against ``model(input_ids, labels=…)`` and PyTorch's AdamW."""
    base = base_of(name, tmp_path, **NO_DROPOUT)
    context = make_context(tmp_path / "sft", "sft", {"base": base}, settings=PLAIN | {"epochs": 3})
    result = run("sft", context)

    model: Any = AutoModelForSeq2SeqLM.from_pretrained(base.path)
    rows = {json.dumps(row): row["messages"] for row in demonstration_rows()}.values()  # each once
    batch = inputs_of(AutoTokenizer.from_pretrained(base.path), [row[0]["content"] for row in rows],
                      [row[1]["content"] for row in rows])  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=PLAIN["learning_rate"], weight_decay=0.0)
    losses, norms = [], []
    for _step in range(3):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        norms.append(math.sqrt(sum(float(weight.grad.pow(2).sum()) for weight in model.parameters())))
        optimizer.step()
        losses.append(loss.item())
    assert result.curves["loss"][0][1] == pytest.approx(losses[0], abs=1e-5)
    assert [value for _step, value in result.curves["grad_norm"]] == pytest.approx(norms, rel=1e-3)
    assert [value for _step, value in result.curves["loss"]] == pytest.approx(losses, rel=1e-3)

    saved: Any = AutoModelForSeq2SeqLM.from_pretrained(context.output)  # bare transformers
    with torch.no_grad():
        expected, found = model.eval()(**batch).logits, saved.eval()(**batch).logits
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def pairs_artifact(folder: Path) -> tuple[Artifact, list[PreferencePair]]:
    """24 pairs, of every third of which the rejected answer was cut off."""
    pairs = [pair.model_copy(update={"rejected_finished": place % 3 > 0}) for place, pair in enumerate(tiny_pairs())]
    folder.mkdir()
    write_records(folder / "pairs.jsonl", pairs)
    return artifact_of("preferences", "preferences", folder), pairs


@pytest.mark.parametrize("name", FAMILIES)
def test_dpo_is_a_bare_loops(name: str, make_context: MakeContext, tmp_path: Path) -> None:
    """ln 2 at first, and three steps of Rafailov et al. 2023, equation 7, by the plain class with its dropout off."""
    base = base_of(name, tmp_path)
    preferences, pairs = pairs_artifact(tmp_path / "pairs")
    settings = PLAIN | {"model": "base", "epochs": 3, "beta": BETA}
    context = make_context(tmp_path / "dpo", "dpo", {"base": base, "preferences": preferences}, settings=settings)
    result = run("dpo", context)

    model: Any = AutoModelForSeq2SeqLM.from_pretrained(base.path).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(base.path)
    prompts = [pair.prompt[0].content for pair in pairs]
    cut = tuple(place for place in range(len(pairs)) if place % 3 == 0)
    sides = [inputs_of(tokenizer, prompts, [pair.chosen for pair in pairs]),
             inputs_of(tokenizer, prompts, [pair.rejected for pair in pairs], cut=cut)]  # fmt: skip

    def logps(side: dict[str, Any]) -> torch.Tensor:
        logits, labels = model(**side).logits, side["labels"]
        picked = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
        return (picked * (labels != -100)).sum(-1)

    with torch.no_grad():
        chosen, rejected = (logps(side) for side in sides)
        before = chosen - rejected
    optimizer = torch.optim.AdamW(model.parameters(), lr=PLAIN["learning_rate"], weight_decay=0.0)
    losses, norms = [], []
    for _step in range(3):
        optimizer.zero_grad()
        margins = logps(sides[0]) - logps(sides[1]) - before
        loss = -torch.nn.functional.logsigmoid(BETA * margins).mean()
        loss.backward()
        norms.append(math.sqrt(sum(float(weight.grad.pow(2).sum()) for weight in model.parameters())))
        optimizer.step()
        losses.append(loss.item())
    assert result.curves["loss"][0][1] == pytest.approx(math.log(2), abs=1e-5)
    assert [value for _step, value in result.curves["grad_norm"]] == pytest.approx(norms, rel=1e-3)
    assert [value for _step, value in result.curves["loss"]] == pytest.approx(losses, rel=2e-3)
    assert losses[2] < 0.9 * losses[0]


@pytest.mark.parametrize("targets", [None, pytest.param(("q", "v"), marks=pytest.mark.slow)])
def test_adapters_of_sft_go_on_in_dpo_and_merge(
    targets: tuple[str, ...] | None, make_context: MakeContext, preferences: Artifact, tmp_path: Path
) -> None:
    """In bfloat16 on a T5; what is merged is what the adapter was, and PEFT's own class loads it."""
    base = base_of("t5", tmp_path)
    lora = {"rank": 4, "alpha": 8, "targets": targets}
    common = {"lora": lora, "learning_rate": 1e-2, "max_length": 96}
    context = make_context(tmp_path / "sft", "sft", {"base": base}, settings=common | {"epochs": 4},
                           changes={"model.dtype": "bfloat16"})  # fmt: skip
    result = run("sft", context)
    assert result.metrics["loss"] < 0.98 * result.curves["loss"][0][1]
    start = artifact_of("sft", "model", context.output, {"base": base})
    adapted = set(load_file(context.output / "adapter_model.safetensors"))
    layers = 12 if targets else 32  # 2 + 2 blocks: q and v of 6 attentions, or q, k, v, o of them and wi, wo of 4
    assert len(adapted) == 2 * layers
    assert json.loads((context.output / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"

    context = make_context(tmp_path / "dpo", "dpo", {"base": base, "sft": start, "preferences": preferences},
                           settings=common | {"epochs": 2})  # fmt: skip
    result = run("dpo", context)
    assert result.curves["loss"][0][1] == pytest.approx(math.log(2), abs=1e-5)
    assert result.metrics["loss"] < math.log(2)

    made = artifact_of("dpo", "model", context.output, {"base": base})
    run_settings = context.run
    policy, tokenizer = load_policy(made, base, run_settings)
    export_merged(made, base, run_settings, tmp_path / "merged")
    whole: Any = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged")
    from peft import AutoPeftModelForSeq2SeqLM

    (context.output / "adapter_config.json").chmod(0o644)
    bare: Any = AutoPeftModelForSeq2SeqLM.from_pretrained(context.output)
    batch = inputs_of(tokenizer, ["Who saw it?", "Name the red cat."], ["Red.", "It is blue."])
    with torch.no_grad():
        found = [model.eval()(**batch).logits for model in (policy, whole, bare)]
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[2], found[0], atol=1e-4, rtol=1e-4)


class Died(BaseException):
    """Ends a stage in the middle."""


@pytest.mark.parametrize(("kind", "lora"), [("sft", None), ("dpo", {"rank": 4, "alpha": 8})])
def test_a_death_changes_nothing(
    kind: str, lora: Any, make_context: MakeContext, preferences: Artifact, tmp_path: Path
) -> None:
    """A BART, in bfloat16, with dropout where it is SFT."""
    base = base_of("bart", tmp_path)
    settings = {"lora": lora, "epochs": 2, "batch_size": 8, "checkpoint_every": 2, "max_length": 96}
    settings |= {"model": "base"} if kind == "dpo" else {}

    def attempt(where: Path, die_at: int | None = None) -> list[int]:
        steps: list[int] = []

        def report(progress: Progress) -> None:
            steps.append(progress.step)
            if progress.step == die_at:
                raise Died

        shutil.rmtree(where / "output", ignore_errors=True)
        inputs = {"base": base, "preferences": preferences}
        changes = {"model.dtype": "bfloat16"}
        context = make_context(where, kind, inputs, settings=settings, changes=changes, report=report)
        with contextlib.suppress(Died):
            run(kind, context)
        return steps

    attempt(tmp_path / "whole")
    assert attempt(tmp_path / "died", die_at=3) == [1, 2, 3]
    assert attempt(tmp_path / "died")[0] == 3
    assert folder_digest(tmp_path / "died" / "output") == folder_digest(tmp_path / "whole" / "output")
    assert curve(tmp_path / "died" / "output") == curve(tmp_path / "whole" / "output")


def test_a_head_of_its_own_stays_so(make_context: MakeContext, tmp_path: Path) -> None:
    """FLAN-T5's configuration says that its head is the embedding, and its files hold both."""
    folder = write_seq2seq(tmp_path / "model", "t5", own_head=True, dropout_rate=0.0)
    base = prepare_base(Workspace(tmp_path / "space"), ModelSettings(base=str(folder)))
    before = load_file(folder / "model.safetensors")
    assert not torch.equal(before["lm_head.weight"], before["shared.weight"])
    context = make_context(tmp_path / "sft", "sft", {"base": base}, settings=PLAIN | {"epochs": 1},
                           changes={"model.dtype": "bfloat16"})  # fmt: skip
    run("sft", context)
    after = load_file(context.output / "model.safetensors")
    torch.testing.assert_close(after["lm_head.weight"].float(), before["lm_head.weight"], atol=2e-2, rtol=1e-2)
    saved: Any = AutoModelForSeq2SeqLM.from_pretrained(context.output)
    assert torch.equal(saved.lm_head.weight, after["lm_head.weight"])
    assert not saved.config.scale_decoder_outputs


def test_masters_are_float32_and_what_is_written_is_not(make_context: MakeContext, tmp_path: Path) -> None:
    """Steps of 1e-5 of a weight move it in float32, and would be lost in bfloat16's eight bits."""
    base = base_of("t5", tmp_path, **NO_DROPOUT)
    settings = PLAIN | {"learning_rate": 2e-5, "epochs": 12}
    context = make_context(tmp_path / "sft", "sft", {"base": base}, settings=settings,
                           changes={"model.dtype": "bfloat16"})  # fmt: skip
    result = run("sft", context)
    losses = [value for _step, value in result.curves["loss"]]
    assert losses[-1] < losses[0]
    saved: Any = AutoModelForSeq2SeqLM.from_pretrained(context.output)
    assert saved.dtype == torch.bfloat16


def test_a_trainer_of_decoders_alone_refuses_it(make_context: MakeContext, tmp_path: Path) -> None:
    base = base_of("t5", tmp_path)
    context = make_context(tmp_path / "kto", "sft", {"base": base})
    settings = KtoStage.model_validate({"kind": "kto", "model": "base", "preferences": "preferences"})
    with pytest.raises(StageError, match="is an encoder with a decoder \\(t5\\), not a decoder alone"):
        begin_policy(settings, context, reference=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}])
def test_a_step_is_the_same_however_it_is_made(
    name: str, lora: Any, make_context: MakeContext, tmp_path: Path, together: SimpleNamespace
) -> None:
    """On two workers, in pieces, and with recomputed activations."""
    base = base_of(name, tmp_path, **NO_DROPOUT)
    common = {"lora": lora, "epochs": 2, "max_length": 192, "checkpoint_every": 1000, "learning_rate": 1e-3}
    ways = {
        "one": {"batch_size": 8}, "two": {"batch_size": 8}, "pieces": {"batch_size": 4, "gradient_accumulation": 2},
        "recomputed": {"batch_size": 8, "gradient_checkpointing": True},
    }  # fmt: skip
    losses = {}
    for way, own in ways.items():
        workers = 2 if way == "two" else 1
        contexts = []
        for rank in range(workers):
            context = make_context(tmp_path / way, "sft", {"base": base}, settings=common | own)
            if rank:
                context.output = tmp_path / way / f"scratch-{rank}"
            contexts.append(context)
        together.in_processes(contexts)
        losses[way] = curve(tmp_path / way / "output")
    for way in ways:
        assert losses[way] == pytest.approx(losses["one"], rel=1e-3), way

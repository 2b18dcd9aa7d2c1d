"""The whole life of what ``adapter`` trains: begun, killed, resumed, saved, loaded, merged, and what stands on top."""

import json
import math
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, LlamaConfig

from alignment.durable_files import folder_digest
from alignment.errors import StageError
from alignment.models.adapters import is_adapter
from alignment.models.base_model import prepare_base
from alignment.models.export import export_merged
from alignment.models.load import load_policy
from alignment.models.reward_model import load_reward_model, score
from alignment.recipe.run_settings import ModelSettings
from alignment.records import Artifact
from alignment.rollouts.policy_pool import PolicyPool
from alignment.stage import Progress, StageContext
from alignment.workspace import Workspace
from tests.alignment.conftest import MODULES, artifact_of, curve

MakeContext = Callable[..., StageContext]
KINDS: dict[str, dict[str, Any]] = {
    "ia3": {"kind": "ia3"},
    "prompt": {"kind": "prompt", "tokens": 5, "text": "Answer in one word."},
    "prefix": {"kind": "prefix", "tokens": 5, "text": "Answer in one word."},
    "p_tuning": {"kind": "p_tuning", "tokens": 5, "hidden": 16},
    "bitfit": {"kind": "bitfit"},
    "layers": {"kind": "layers", "last": 1},
}
SOFT, WHOLE = ("prompt", "prefix", "p_tuning"), ("bitfit", "layers")
SFT = {"epochs": 1, "batch_size": 4, "checkpoint_every": 1, "learning_rate": 1e-2}
SHORT = {"steps": 2, "episodes": 8, "batch_size": 4, "learning_rate": 1e-2, "warmup": 0.0, "checkpoint_every": 1,
         "rewards": [{"kind": "length_penalty", "unit": "characters", "free": 2, "full": 20}],
         "sampling": {"max_new_tokens": 4}}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "dpo": {"epochs": 1, "learning_rate": 1e-2, "batch_size": 4},
    "kto": {"preferences": "preferences", "epochs": 1, "learning_rate": 1e-2, "batch_size": 4},
    "grpo": SHORT | {"per_prompt": 2, "beta": 0.1},
    "ppo": SHORT,
}
IDS = torch.tensor([[5, 9, 14, 3, 22, 7]])


class Died(BaseException):
    """Ends a stage in the middle."""


def run(context: StageContext) -> Any:
    stage = context.recipe.stages[context.name]  # type: ignore[attr-defined]
    return import_module(MODULES[stage.kind]).run(stage, context)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits[:, -IDS.shape[1] :]
        return found


@pytest.fixture(scope="module")
def biased(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The tiny model's tokenizer on a model that has biases."""
    folder = tmp_path_factory.mktemp("biased") / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    shape = json.loads((folder / "config.json").read_text()) | {"attention_bias": True, "mlp_bias": True}
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape | {"initializer_range": 0.2}))
    model.save_pretrained(folder)
    return prepare_base(Workspace(tmp_path_factory.mktemp("space")), ModelSettings(base=str(folder)))


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def trained(kind: str, biased: Artifact, make_context: MakeContext, tmp_path_factory: pytest.TempPathFactory) -> Any:
    settings = SFT | {"lora": None, "adapter": KINDS[kind]}
    context = make_context(tmp_path_factory.mktemp("sft"), "sft", {"base": biased}, settings=settings)
    result = run(context)
    assert result.curves["loss"][-1][1] < result.curves["loss"][0][1]
    return artifact_of("sft", "model", context.output, {"base": biased}), context


def test_what_is_saved_is_what_was_trained(kind: str, biased: Artifact, trained: Any, tmp_path: Path) -> None:
    """Loaded by us, by bare transformers with PEFT, and merged where it can be."""
    artifact, context = trained
    ours = logits(load_policy(artifact, biased, context.run)[0])
    assert (ours - logits(load_policy(biased, biased, context.run)[0])).abs().max() > 1e-3
    assert is_adapter(artifact) == (kind not in WHOLE)
    bare = AutoModelForCausalLM if kind in WHOLE else AutoPeftModelForCausalLM
    torch.testing.assert_close(logits(bare.from_pretrained(artifact.path)), ours, atol=2e-5, rtol=1e-4)
    if kind in SOFT:
        with pytest.raises(StageError, match="virtual tokens, which cannot be merged"):
            export_merged(artifact, biased, context.run, tmp_path / "merged")
        return
    export_merged(artifact, biased, context.run, tmp_path / "merged")
    whole = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(whole, ours, atol=2e-5, rtol=1e-4)


def test_a_death_changes_nothing(
    kind: str, biased: Artifact, trained: Any, make_context: MakeContext, tmp_path: Path
) -> None:
    def report(progress: Progress) -> None:
        if progress.step == 2:
            raise Died

    for reporting in (report, lambda _progress: None):
        shutil.rmtree(tmp_path / "output", ignore_errors=True)
        settings = SFT | {"lora": None, "adapter": KINDS[kind]}
        context = make_context(tmp_path, "sft", {"base": biased}, settings=settings, report=reporting)
        try:
            run(context)
        except Died:
            assert list(context.checkpoints.glob("checkpoint-*"))
    assert folder_digest(tmp_path / "output") == folder_digest(Path(trained[0].path))


@pytest.mark.parametrize("start", ["sft", "base"])
@pytest.mark.parametrize("stage", list(OWN))
def test_a_stage_starts_from_its_reference(
    kind: str, stage: str, start: str, biased: Artifact, trained: Any, preferences: Artifact,
    make_context: MakeContext, tmp_path: Path,
) -> None:  # fmt: skip
    """On top of what SFT trained, and fresh on the base: DPO's loss is ln 2, others' KL is 0; then it moves."""
    before = {"sft": trained[0], "base": biased}[start]
    inputs = {"base": biased, "sft": trained[0], "preferences": preferences}
    settings = {"kind": stage, "model": start, **OWN[stage]}
    if start == "base" or kind in WHOLE:
        settings["adapter"] = KINDS[kind]
    context = make_context(tmp_path, stage, inputs, settings=settings)
    result = run(context)
    if stage == "dpo":
        losses = curve(context.output)
        assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
        assert losses[-1] < losses[0]
    if stage in ("grpo", "ppo"):
        assert result.curves["kl"][0][1] == pytest.approx(0, abs=1e-5)
        assert result.curves["kl"][-1][1] > 1e-6
    found = artifact_of("next", "model", context.output, {"base": biased})
    assert is_adapter(found) == (kind not in WHOLE)
    policy = load_policy(found, biased, context.run)[0]
    assert (logits(policy) - logits(load_policy(before, biased, context.run)[0])).abs().max() > 1e-4
    if is_adapter(found):
        with policy.disable_adapter():  # type: ignore[operator]
            torch.testing.assert_close(
                logits(policy), logits(load_policy(biased, biased, context.run)[0]), atol=0, rtol=0
            )


@pytest.mark.parametrize("stage", ["dpo", "ppo", "grpo"])
def test_a_later_death_changes_nothing(
    kind: str, stage: str, biased: Artifact, preferences: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    """Fresh on the base, whose reference is drawn, made and forgotten with the process."""

    def report(progress: Progress) -> None:
        if progress.step >= 2:
            raise Died

    settings = {
        "kind": stage,
        "model": "base",
        **OWN[stage],
        "checkpoint_every": 1,
        "lora": None,
        "adapter": KINDS[kind],
    }
    settings |= {"steps": 3} if stage in ("ppo", "grpo") else {}
    digests = []
    for place, reports in (("whole", [None]), ("killed", [report, None])):
        (tmp_path / place).mkdir()
        for one in reports:
            shutil.rmtree(tmp_path / place / "output", ignore_errors=True)
            inputs = {"base": biased, "preferences": preferences}
            context = make_context(
                tmp_path / place, stage, inputs, settings=settings, report=one or (lambda _progress: None)
            )
            try:
                run(context)
            except Died:
                assert list(context.checkpoints.glob("*"))
        files = ("model.safetensors",) if kind in WHOLE else ("adapter_model.safetensors", "adapter_config.json")
        digests.append([(context.output / name).read_bytes() for name in files])
    assert digests[0] == digests[1]


def test_a_reward_model(
    kind: str, biased: Artifact, trained: Any, preferences: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    """On top of the trained policy with a part of its own: merged and whole. Virtual tokens are refused."""
    inputs = {"base": biased, "sft": trained[0], "preferences": preferences}
    if kind in SOFT:
        context = make_context(tmp_path, "reward", inputs, settings={"epochs": 1})
        with pytest.raises(StageError, match="virtual tokens, which cannot be merged"):
            run(context)
        return
    context = make_context(
        tmp_path, "reward", inputs, settings={"lora": None, "adapter": KINDS[kind], "epochs": 1, "learning_rate": 1e-2}
    )
    result = run(context)
    found = artifact_of("reward", "reward_model", context.output, inputs)
    model, tokenizer = load_reward_model(found, context.run)
    held = json.loads((context.output / "held_out.json").read_text())
    assert "accuracy" in result.metrics
    assert held is not None
    first = score(model, tokenizer, [[5, 9, 14, 3], [5, 9, 14, 8, 2]])
    again = score(load_reward_model(found, context.run)[0], tokenizer, [[5, 9, 14, 3], [5, 9, 14, 8, 2]])
    assert first == again
    assert first[0] != first[1]


def test_policies_of_other_kinds_beside_each_other(biased: Artifact, make_context: MakeContext, tmp_path: Path) -> None:
    """Each as if it were alone, in whatever order they are asked."""
    policies = {"base": biased}
    for name, settings in {
        **{kind: {"lora": None, "adapter": KINDS[kind]} for kind in ("ia3", "prompt", "prefix")},
        "lora": {},
    }.items():
        (tmp_path / name).mkdir()
        context = make_context(tmp_path / name, "sft", {"base": biased}, settings=SFT | {"epochs": 0.5, **settings})
        run(context)
        policies[name] = artifact_of(name, "model", context.output, {"base": biased})
    alone = {name: logits(load_policy(one, biased, context.run)[0]) for name, one in policies.items()}
    pool = PolicyPool(biased, context.run)
    for name in ("base", "prompt", "lora", "prompt", "base", "ia3", "prefix", "base", "lora", "prefix", "prompt"):
        torch.testing.assert_close(logits(pool.use(policies[name]).model), alone[name], atol=1e-6, rtol=1e-5)

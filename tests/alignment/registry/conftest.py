"""A workspace with a whole run in it: a real tiny model, a real adapter, and the artifacts between."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.durable_files import folder_digest
from alignment.evaluation.gate import GateVerdict, decide
from alignment.recipe.recipe import Recipe
from alignment.records import Artifact
from alignment.registry import Provenance
from alignment.registry.store import connect
from alignment.workspace import Workspace

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
Run = dict[str, Artifact]

RECIPE = {
    "name": "tiny",
    "model": {"base": "tiny-base"},
    "data": {"prompts": "prompts.jsonl", "demonstrations": "demonstrations.jsonl"},
    "stages": {
        "sft": {"kind": "sft"},
        "answers": {"kind": "sample", "model": "sft"},
        "votes": {"kind": "preferences", "responses": "answers", "raters": {"rubric": "rubric.yaml"}},
        "reward": {"kind": "reward", "preferences": "votes"},
        "dpo": {"kind": "dpo", "model": "sft", "preferences": "votes"},
        "check": {"kind": "evaluate", "model": "dpo", "raters": {"rubric": "rubric.yaml"}, "reward": "reward"},
    },
    "gate": {"evaluation": "check", "conditions": [{"metric": "win_rate.base.rubric.low", "above": 0.5}]},
}


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A real tiny Llama with a tokenizer, and a real LoRA adapter on it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    words = {word: i for i, word in enumerate(["<unk>", "</s>", "<pad>", "<user>", "<assistant>", "one", "two"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    adapter = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapter.save_pretrained(root / "adapter")
    (root / "adapter" / "README.md").unlink(missing_ok=True)
    tokenizer.save_pretrained(root / "adapter")
    return root / "base", root / "adapter"


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh MLflow store, migrated once: each test gets a copy."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture
def mlflow_on_postgres(new_database: Callable[[], str]) -> str:
    """The address of an empty PostgreSQL database, as MLflow's store."""
    return new_database()


@pytest.fixture
def workspace(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "workspace"
    root.mkdir()
    shutil.copy(empty_store, root / "mlflow.db")
    return Workspace(root)


@pytest.fixture
def recipe() -> Recipe:
    return Recipe.model_validate(RECIPE)


@pytest.fixture
def provenance() -> Provenance:
    return Provenance(run="tiny-run", recipe_digest="ab" * 32, commit="cd" * 20)


@pytest.fixture
def make_run(workspace: Workspace, model_folders: tuple[Path, Path]) -> Callable[..., Run]:
    """Makes a run's artifacts; another ``seed`` makes another policy, ``win`` is the lower bound of its win rate."""
    base_folder, adapter_folder = model_folders
    base = Artifact(
        name="base", kind="model", version=1, digest=folder_digest(base_folder), path=str(base_folder),
        key=str(base_folder),
    )  # fmt: skip

    def run(seed: int = 0, win: float = 0.7) -> Run:
        made: Run = {"base": base}

        def add(name: str, kind: str, inputs: list[str], metrics: dict[str, float], copy: Path | None = None) -> None:
            output = workspace.folder("partial") / name
            if copy is None:
                output.mkdir()
                (output / "data.jsonl").write_text(json.dumps({"stage": name}) + "\n")
            else:
                shutil.copytree(copy, output)
                made_on = {"base": base.key, "digest": base.digest, "seed": seed}
                (output / "base.json").write_text(json.dumps(made_on))
                (output / "curves.json").write_text(json.dumps({"loss": [[1, 2.0], [2, 1.5 + seed]]}))
            draft = Artifact(
                name=name, kind=kind, version=1, digest=folder_digest(output), path=str(output), key=f"{name}{seed}",
                inputs={source: made[source].ref() for source in inputs}, metrics=metrics,
            )  # fmt: skip
            made[name] = workspace.publish(draft, output)

        add("sft", "model", ["base"], {"loss": 1.5, "demonstrations": 96.0}, adapter_folder)
        add("answers", "responses", ["base", "sft"], {"responses": 8.0})
        add("votes", "preferences", ["answers"], {"pairs": 40.0})
        add("reward", "reward_model", ["base", "votes"], {"accuracy": 0.8}, adapter_folder)
        add("dpo", "model", ["base", "sft", "votes"], {"loss": 0.5}, adapter_folder)
        rates = {"value": win + 0.1, "low": win, "high": win + 0.15, "length_controlled": win}
        add(
            "check", "evaluation", ["base", "dpo", "reward"], {f"win_rate.base.rubric.{k}": v for k, v in rates.items()}
        )
        return made

    return run


@pytest.fixture
def judge(recipe: Recipe) -> Callable[[Run], GateVerdict]:
    """The recipe's gate on a run's evaluation."""
    assert recipe.gate is not None
    gate = recipe.gate
    return lambda run: decide(gate, run["check"].metrics)

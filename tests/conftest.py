"""A tiny chat model, a recipe around it, and the real data where it is. Everything on the CPU, everything seeded."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import absl.logging
import pytest
from hypothesis import HealthCheck, settings

from tests.hub_server import Hub

# rouge-score logs through absl, whose handler closes the stream that it found when Prefect sets up logging: pytest's.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__

# A busy machine is no fault of the code: no property has to hold within a time.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Read when torch, Prefect and the hub's client are imported, so set before any of them is.
for _name, _value in {
    "OMP_NUM_THREADS": "1",  # tiny matrices: a second thread costs more than it brings
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PREFECT_HOME": tempfile.mkdtemp(prefix="prefect-home-"),
}.items():
    os.environ.setdefault(_name, _value)
if "PYTEST_XDIST_WORKER" in os.environ:  # it inherits its parent's environment, and needs a home of its own
    os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="prefect-home-")

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ANIMALS = ("cat", "dog", "fox", "owl", "hen", "pig", "cow", "bee", "ant", "bat", "elk", "ram")
COLOURS = ("red", "blue", "green", "white")
QUESTIONS = ("What colour is the {animal}?", "Who saw the {animal} today?", "Name the {animal} in one word.")
MakeModel = Callable[..., Path]
MakeRecipe = Callable[..., Path]


def prompt_rows() -> list[dict[str, str]]:
    """24 prompts in two kinds, some with a reference answer."""
    rows = []
    for number in range(24):
        animal = ANIMALS[number % len(ANIMALS)]
        row = {
            "prompt": QUESTIONS[number // len(ANIMALS)].format(animal=animal),
            "kind": ("colour", "person")[number % 2],
        }
        rows.append(row | ({"reference": COLOURS[number % 4]} if number % 3 == 0 else {}))
    return rows


def demonstration_rows() -> list[dict[str, Any]]:
    """12 demonstrations whose prompts are none of the 24."""
    return [
        {
            "messages": [
                {"role": "user", "content": QUESTIONS[2].format(animal=animal)},
                {"role": "assistant", "content": f"The {animal} is {COLOURS[number % 4]}."},
            ]
        }
        for number, animal in enumerate(ANIMALS)
    ]


RUBRIC = """\
name: brief
description: A few words, and no more.
criteria:
  - {name: few_words, text: The answer is short., measure: words, weight: 1, full_at_most: 2, zero_at: 10}
"""
LORA = {"rank": 4, "alpha": 8}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "seed": 5,
    "model": {"dtype": "float32"},
    "data": {"prompts": "prompts.jsonl", "demonstrations": "demonstrations.jsonl", "held_out": 0.3},
    "stages": {
        "sft": {
            "kind": "sft", "epochs": 4, "batch_size": 4, "learning_rate": 1e-2, "checkpoint_every": 3,
            "max_length": 64, "lora": LORA,
        },
        "responses": {
            "kind": "sample", "model": "sft", "per_prompt": 3, "batch_size": 16, "sampling": {"max_new_tokens": 10},
        },
        "preferences": {
            "kind": "preferences", "responses": "responses", "comparisons_per_prompt": 2,
            "raters": {"rubric": "rubric.yaml", "count": 3, "noise": 0.2},
        },
        "reward": {
            "kind": "reward", "model": "sft", "preferences": "preferences", "batch_size": 4, "learning_rate": 1e-3,
            "checkpoint_every": 3, "max_length": 64, "lora": LORA,
        },
        "dpo": {
            "kind": "dpo", "model": "sft", "preferences": "preferences", "batch_size": 4, "learning_rate": 1e-3,
            "checkpoint_every": 2, "epochs": 2, "max_length": 64,
        },
        "evaluation": {
            "kind": "evaluate", "model": "dpo", "against": ["base", "sft"],
            "raters": {"rubric": "rubric.yaml", "noise": 0.2}, "reward": "reward",
            "sampling": {"temperature": 0.0, "max_new_tokens": 10}, "kl_prompts": 3,
        },
    },
    "gate": {"evaluation": "evaluation", "conditions": [{"metric": "kl", "below": 1000}]},
    "resources": {"device": "cpu", "threads": 1},
}  # fmt: skip


def write_model(
    folder: Path, *, seed: int = 0, pad: str | None = "<pad>", template: str | None = CHATML, dtype: str = "float32"
) -> Path:
    """A two-layer Llama with a byte-level BPE vocabulary of its own and ChatML's template.

    ``pad=None`` is the trap: no special token to spare, so padding is EOS. The weights are as good as random.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    texts = [row["prompt"] for row in prompt_rows()]
    texts += [message["content"] for row in demonstration_rows() for message in row["messages"]]
    special = ["<|im_start|>", "<|im_end|>", *([pad] if pad else [])]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=360, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token=pad or "<|im_end|>",
        additional_special_tokens=["<|im_start|>"], model_max_length=256,
    )  # fmt: skip
    tokenizer.chat_template = template
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.1, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """:func:`write_model`: a tiny chat model's folder, made to order."""
    return write_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny chat model with a pad token of its own. Not to be changed."""
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def make_recipe(tiny_model: Path) -> MakeRecipe:
    """Writes a recipe over all kinds of stages, with its data, into a folder; returns the recipe's file.

    ``stages`` keeps only those named; ``changes`` sets values by their dotted names, as ``--set`` does.
    """

    def make(
        folder: Path,
        *,
        model: Path = tiny_model,
        stages: tuple[str, ...] | None = None,
        changes: dict[str, Any] | None = None,
    ) -> Path:
        recipe = json.loads(json.dumps(RECIPE))
        recipe["model"]["base"] = str(model)
        if stages is not None:
            recipe["stages"] = {name: recipe["stages"][name] for name in stages}
            if "evaluation" not in stages:
                del recipe["gate"]
        for name, value in (changes or {}).items():
            inside = recipe
            *path, last = name.split(".")
            for part in path:
                inside = inside.setdefault(part, {})
            inside[last] = value
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in (("prompts", prompt_rows()), ("demonstrations", demonstration_rows())):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        (folder / "rubric.yaml").write_text(RUBRIC, "utf-8")
        path = folder / "tiny.yaml"
        path.write_text(json.dumps(recipe, indent=1), "utf-8")  # JSON is YAML
        return path

    return make


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real preference data: ``RLHF_FLOWS_DATA``, or ``../shared/data`` beside the repository."""
    given = os.environ.get("RLHF_FLOWS_DATA")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set RLHF_FLOWS_DATA to its folder")
    return folder


def _postgres_bin() -> Path | None:
    named = os.environ.get("RLHF_TEST_POSTGRES_BIN")
    homes = [Path(named)] if named else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((home for home in reversed(homes) if (home / "initdb").exists()), None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server of this test run, without a database's name."""
    binaries = _postgres_bin()
    if binaries is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: postgresql)")
    home = Path(tempfile.mkdtemp(prefix="rlhf-pg-"))
    as_user: dict[str, str] = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(home, "postgres", "postgres")
        as_user = {"user": "postgres", "group": "postgres"}
    hasty = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off"  # what is in it is gone after the tests
    data, options = home / "data", f"-k {home} -c listen_addresses='' -c max_connections=120 {hasty}"
    quiet = {"stdout": subprocess.DEVNULL, "cwd": home}
    make = [binaries / "initdb", "-D", data, "-U", "rlhf", "--auth=trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(make, check=True, **quiet, **as_user)
    control = [binaries / "pg_ctl", "-D", data, "-w", "-l", home / "log"]
    subprocess.run([*control, "-o", options, "start"], check=True, **quiet, **as_user)
    try:
        yield f"postgresql+psycopg://rlhf@/{{name}}?host={home}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, **quiet, **as_user)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def new_database(postgres: str) -> Callable[[], str]:
    """Makes an empty database on the PostgreSQL server, and returns its URL."""
    from sqlalchemy import create_engine, text

    def make() -> str:
        name = f"t{uuid.uuid4().hex}"
        engine = create_engine(postgres.format(name="postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return postgres.format(name=name)

    return make


@pytest.fixture(scope="session")
def axe() -> Callable[[Any], list[str]]:
    """Runs axe-core on a page: the serious and critical violations."""
    axe_core = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python, which carries axe-core")
    source = Path(axe_core.__file__).with_name("axe.min.js")

    def run(page: Any) -> list[str]:
        page.evaluate(source.read_text("utf-8"))
        found = page.evaluate("async () => (await axe.run()).violations")
        return [
            f"{one['id']}: {json.dumps([node['html'][:160] for node in one['nodes'][:3]])}"
            for one in found
            if one["impact"] in ("serious", "critical")
        ]

    return run


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub of its own for a test."""
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()

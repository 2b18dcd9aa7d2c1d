"""The model card of a registered version: what it is, how it was made, how good it is, and what it is not."""

import json
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

from alignment.durable_files import write_text
from alignment.models.weights import GGUF_FILE
from alignment.plain_text import markdown, markdown_code, markdown_lines
from alignment.recipe.base import BASE, STAGE_PREFIX
from alignment.recipe.graph import of_type
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.feedback.preferences import PreferencesStage
from alignment.records import Artifact
from alignment.registry.files import ADAPTER_FILE, CARD_FILE, is_adapter
from alignment.registry.lineage import LineageNode
from alignment.registry.records import VersionRecord
from alignment.registry.win_rates import CandidateWinRate, win_rates

EMBEDDED = {"embedded:smollm2-135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}
ADAPTERS = {
    "LORA": "a LoRA adapter", "IA3": "an (IA)³ adapter", "PROMPT_TUNING": "virtual tokens",
    "PREFIX_TUNING": "a prefix of keys and values",
}  # fmt: skip
FIGURES = (  # metrics of a step that a card quotes
    "demonstrations", "prompts", "responses", "comparisons", "votes", "ties", "pairs", "loss", "rewards/accuracies",
    "accuracy", "accuracy.low", "accuracy.high", "agreement",
)  # fmt: skip


def write_card(folder: Path, record: VersionRecord, recipe: Recipe, artifacts: Mapping[str, Artifact]) -> None:
    """Writes ``README.md`` into a version's folder."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    evaluation = artifacts.get(recipe.gate.evaluation) if recipe.gate else None
    rates = win_rates(evaluation.metrics) if evaluation else []
    base, license_id = _base(artifacts[BASE])
    adapter = (folder / "adapter_config.json").exists()
    data = ModelCardData(
        base_model=None if artifacts[BASE].key.startswith(STAGE_PREFIX) else base,
        license=license_id,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        model_name=f"{record.name} v{record.version}",
        tags=["rlhf-flows", *sorted({stage.kind for stage in recipe.stages.values()})],
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type="held-out-prompts",
                dataset_name=f"Held-out prompts of the recipe {recipe.name}",
                metric_type="win_rate",
                metric_name=f"win rate against {rate.opponent}, judged by {rate.judged_by}",
                metric_value=round(rate.value, 4),
                metric_config=f"95% interval {rate.low:.3f} to {rate.high:.3f}",
            )
            for rate in rates
        ],
    )
    card = ModelCard.from_template(
        data,
        template_str=resources.files("alignment.registry").joinpath("card.md.j2").read_text("utf-8"),
        record=record,
        summary=_summary(record, rates),
        base=f"{markdown_code(base)}, as {markdown_code(artifacts[BASE].key)}, digest `{artifacts[BASE].digest[:12]}`",
        form=_form(folder, artifacts[record.candidate.name]),
        description=markdown_lines(recipe.description),
        steps=[_step(node) for node in record.lineage.nodes if node.kind != "evaluation"],
        data=_data(recipe, artifacts),
        rates=rates,
        held_out=_held_out(evaluation),
        limits=_limits(recipe, rates),
        code=_code(folder),
        text=markdown,
        span=markdown_code,
    )
    write_text(folder / CARD_FILE, str(card))


def _base(base: Artifact) -> tuple[str, str]:
    """The base model's public name and its licence, as its own card says."""
    from huggingface_hub import ModelCard

    if base.key in EMBEDDED:
        return EMBEDDED[base.key]
    own = Path(base.path) / CARD_FILE
    license_id = ModelCard.load(own, ignore_metadata_errors=True).data.get("license") if own.exists() else None
    name = f"the stage {base.name} of this recipe" if base.key.startswith(STAGE_PREFIX) else base.key
    return name, str(license_id or "unknown")


def _summary(record: VersionRecord, rates: list[CandidateWinRate]) -> str:
    verdict = "was refused by the gate and is registered as a candidate"
    if record.verdict.passed:
        verdict = "was promoted"
    elif record.verdict.waits:
        verdict = "holds every condition of the gate; a person has yet to approve it"
    best = next((rate for rate in rates if rate.opponent == BASE), rates[0] if rates else None)
    if best is None:
        return f"It {verdict}."
    share = f"{best.value:.0%} of held-out comparisons with {markdown(best.opponent)}"
    return (
        f"It wins {share} (95 % interval {best.low:.0%} to {best.high:.0%}), judged by {markdown(best.judged_by)}. "
        f"It {verdict}."
    )


def _form(folder: Path, artifact: Artifact) -> str:
    if (folder / GGUF_FILE).exists():
        return f"a GGUF file, `{GGUF_FILE}`, which llama.cpp reads, with its tokenizer"
    if not is_adapter(artifact):
        return "whole weights"
    merged = "; the whole weights, adapter merged, are in `merged/`" if (folder / "merged").is_dir() else ""
    kind = json.loads((folder / ADAPTER_FILE).read_text("utf-8")).get("peft_type", "LORA")
    return f"{ADAPTERS.get(kind, 'an adapter')} (PEFT) on the base model{merged}"


def _step(node: LineageNode) -> dict[str, str]:
    figures = [f"{name} {node.metrics[name]:.4g}" for name in FIGURES if name in node.metrics]
    return {
        "id": str(node),
        "kind": node.kind,
        "inputs": ", ".join([*(ref.name for ref in node.inputs.values()), *node.origins]) or "–",
        "figures": ", ".join(figures) or "–",
    }


def _data(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> str:
    given = recipe.data
    files = {
        "prompts": given.prompts, "demonstrations": given.demonstrations, "held-out prompts": given.held_out_prompts,
        "thumbs": given.feedback,
    }  # fmt: skip
    parts = [f"{what} from {markdown_code(path)}" for what, path in files.items() if path]
    for name, stage in recipe.stages.items():
        if name in artifacts and stage.kind in _FEEDBACK:
            parts.append(_FEEDBACK[stage.kind](recipe, artifacts[name]))
    return f"Data: {'; '.join(parts)}." if parts else "Data: none is named by the recipe."


def _programs(recipe: Recipe, artifact: Artifact) -> str:
    raters = dict(of_type(recipe.stages, PreferencesStage))[artifact.name].raters
    return f"preferences by {raters.count} simulated raters with the rubric {markdown_code(raters.rubric)}"


def _people(_recipe: Recipe, artifact: Artifact) -> str:
    what = {"feedback": "thumbs", "spans": "marked parts"}.get(artifact.kind, artifact.kind)
    return f"{what} by {artifact.metrics['raters']:.0f} people ({artifact.metrics['votes']:.0f} votes)"


_FEEDBACK: dict[str, Callable[[Recipe, Artifact], str]] = {  # where feedback came from, by the kind of the stage
    "preferences": _programs,
    "human_preferences": _people,
    "judge": lambda _recipe, artifact: f"preferences by an AI judge ({_calibration(artifact)})",
    "constitution": lambda _recipe, artifact: (
        f"{artifact.metrics['revised']:.0f} revisions by a constitution, which a model wrote and no person read"
    ),
    "preference_file": lambda recipe, _artifact: (
        f"preferences from the file {markdown_code(str(recipe.data.preferences))}"
    ),
}


def _calibration(judged: Artifact) -> str:
    """How far the judge was measured to agree with raters."""
    kappa = judged.metrics.get("kappa")
    return "uncalibrated: nobody's votes to compare with" if kappa is None else f"Cohen's κ with its raters {kappa:.2f}"


def _held_out(evaluation: Artifact | None) -> str:
    path = Path(evaluation.path) / "evaluation.json" if evaluation else None
    found = json.loads(path.read_text("utf-8")) if path and path.exists() else {}
    return f"{found['prompts']} held-out prompts" if "prompts" in found else "held-out prompts"


def _limits(recipe: Recipe, rates: list[CandidateWinRate]) -> list[str]:
    kinds = {stage.kind for stage in recipe.stages.values()}
    simulated = "preferences" in kinds
    limits = []
    if simulated:
        limits.append(
            "The preferences come from simulated raters: programs that follow a written rubric, with noise. "
            "No person compared these answers."
        )
    if simulated and any(rate.judge == "rubric" for rate in rates):
        limits.append(
            "The rubric that made the preferences also judges the result. Its win rate says how well the model learned "
            "that rubric, not how well people like it."
        )
    if any(rate.judge == "reward" for rate in rates):
        limits.append(
            "The reward model that judges was trained on the same preferences; it can be wrong in the same way."
        )
    if "judge" in kinds:
        limits.append(
            "Preferences come from an AI judge: its own leanings, such as for length or place, are learned too."
        )
    if "constitution" in kinds:
        limits.append("A model revised its own answers: what it takes for better was learned, whether it is or not.")
    limits.append(
        "Nothing here measures safety, truthfulness or bias. What the base model gets wrong, this one may too."
    )
    own = recipe.data.held_out_prompts
    which = f"are those of `{own}`" if own else "resemble the training prompts"
    limits.append(f"The held-out prompts {which}; on others the model may do worse.")
    return limits


def _code(folder: Path) -> str:
    if (folder / "adapter_config.json").exists() and not (folder / "merged").is_dir():
        return (
            f"from peft import AutoPeftModelFor{_task(folder)}\nfrom transformers import AutoTokenizer\n\n"
            f'model = AutoPeftModelFor{_task(folder)}.from_pretrained("path/to/this/folder")\n'
            'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")'
        )
    inner = "/merged" if (folder / "merged").is_dir() else ""
    file = f', gguf_file="{GGUF_FILE}"' if (folder / GGUF_FILE).exists() else ""
    task = _task(folder / "merged" if inner else folder)
    return (
        f"from transformers import AutoModelFor{task}, AutoTokenizer\n\n"
        f'model = AutoModelFor{task}.from_pretrained("path/to/this/folder{inner}"{file})\n'
        f'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder{inner}")'
    )


def _task(folder: Path) -> str:
    """What transformers' and PEFT's auto classes call the task of a folder's model, or of its adapter."""
    from alignment.models.seq2seq.architecture import holds_encoder_decoder  # brings transformers along

    return "Seq2SeqLM" if holds_encoder_decoder(folder) else "CausalLM"

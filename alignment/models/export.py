"""Whole weights from an adapter, for who serves without PEFT."""

from pathlib import Path

from alignment.models.adapters import merged
from alignment.models.load import load_policy
from alignment.models.weights import require_finite
from alignment.recipe.run_settings import RunSettings
from alignment.records import Artifact


def export_merged(artifact: Artifact, base: Artifact, run: RunSettings, target: Path) -> None:
    """Writes ``artifact``, merged into its base, as a plain Hugging Face folder with its tokenizer.

    A base in fewer bits is merged as the plain numbers that these stand for: what the adapter was trained on.
    """
    model, tokenizer = load_policy(artifact, base, run, plain=True)
    whole = merged(model, str(artifact.ref()))
    require_finite(whole.named_parameters(), f"{artifact.ref()}, merged,")  # what is finite apart may overflow together
    whole.save_pretrained(target)
    tokenizer.save_pretrained(target)

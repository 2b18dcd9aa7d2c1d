"""What the arithmetic needs to know of the encoders that stages start from."""

from dataclasses import replace

from alignment.checks.data import RecipeData
from alignment.checks.encoders.inspect import inspect_encoder
from alignment.plan.sizes import ModelSize, encoder_size
from alignment.plan.texts import Texts, measure_texts
from alignment.recipe.resolved import ResolvedRecipe


def measure_encoders(resolved: ResolvedRecipe, data: RecipeData) -> dict[str, tuple[ModelSize, Texts]]:
    """The size of each stage's encoder, and prompts and pairs by its tokenizer, of a recipe without faults."""
    recipe = resolved.recipe
    read = replace(data, demonstrations=[], feedback=[], corpus=(), put_prompts={})  # no encoder reads those
    found = {}
    for name, stage in recipe.stages.items():
        if stage.encoder_used() is not None:
            encoder = inspect_encoder(stage, resolved.data)
            size = encoder_size(encoder.config, encoder.tokenizer.model_max_length)
            found[name] = size, measure_texts(read, recipe.data.held_out, encoder.tokenizer)
    return found

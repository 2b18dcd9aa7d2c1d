"""Models that write for a stage: loaded here, or asked over the network. What was paid for is kept, as with judges."""

from alignment.models.loading import load_policy
from alignment.preferences.feedback_settings import Writer
from alignment.preferences.judges.answers import Answers
from alignment.preferences.judges.build import LocalAsker
from alignment.preferences.judges.endpoint import EndpointAsker
from alignment.preferences.judges.generative import Asker
from alignment.recipe_base import BASE
from alignment.stage import StageContext


def build_writer(settings: Writer, context: StageContext) -> tuple[Asker, str]:
    """Who writes, and its name.

    Raises StageError where its model is an adapter for another base, or an endpoint's key is not to be had.
    """
    if settings.endpoint is not None:
        answers = Answers(context.kept or context.checkpoints / "answers")
        return EndpointAsker(settings, settings.endpoint, answers), settings.endpoint.model
    artifact = context.inputs[settings.model or BASE]
    model, tokenizer = load_policy(artifact, context.inputs[BASE], context.recipe)
    return LocalAsker(settings, model, tokenizer, context.recipe.seed), str(artifact.ref())

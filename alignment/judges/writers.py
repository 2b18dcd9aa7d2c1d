"""Models that write for a stage: loaded here, or asked over the network. What was paid for is kept, as with judges."""

from alignment.judges.answer_cache import Answers
from alignment.judges.llm_judge import Asker
from alignment.judges.local_model import LocalAsker
from alignment.judges.openai_endpoint import EndpointAsker
from alignment.models.load import load_policy
from alignment.recipe.base import BASE
from alignment.recipe.stages.ai_feedback import Writer
from alignment.stage import StageContext


def build_writer(settings: Writer, context: StageContext) -> tuple[Asker, str]:
    """Who writes, and its name.

    Raises StageError where its model is an adapter for another base, or an endpoint's key is not to be had.
    """
    if settings.endpoint is not None:
        answers = Answers(context.kept or context.checkpoints / "answers")
        return EndpointAsker(settings, settings.endpoint, answers), settings.endpoint.model
    artifact = context.inputs[settings.model or BASE]
    model, tokenizer = load_policy(artifact, context.inputs[BASE], context.run)
    return LocalAsker(settings, model, tokenizer, context.run.seed), str(artifact.ref())

"""Which solved examples a prompt shows before its question."""

from collections.abc import Callable, Sequence

from alignment.prompting.questions import Question
from alignment.recipe.stages.prompting import PromptForm
from alignment.rollouts.seeds import derived_seed
from alignment.shots import chosen_places

Choose = Callable[[Question], list[Question]]
"""The examples for a question, in the order in which they are shown."""


def chooser(form: PromptForm, examples: Sequence[Question], seed: int) -> Choose:
    """How a form chooses among ``examples``, of which there are enough."""
    texts = tuple(example.text for example in examples)

    def choose(question: Question) -> list[Question]:
        own = derived_seed(seed, "shots", question.prompt.id)
        return [examples[place] for place in chosen_places(texts, form.shots, form.choose, question.text, own)]

    return choose


def nearest(count: int, examples: Sequence[Question]) -> Choose:
    """The ``count`` examples of the highest BM25 score, the highest last."""
    return chooser(PromptForm(shots=count, choose="nearest"), examples, 0)

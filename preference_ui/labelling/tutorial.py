"""The comparison that every rater sees first, with feedback: easy on purpose, about the page and not the subject."""

from sqlalchemy import select

from alignment.records import Comparison, Message, Prompt, Response, Sampling
from preference_ui.labelling.queue import Gold, queue_gold
from preference_ui.store.schema import IS_KNOWN, comparisons
from preference_ui.store.store import Store

_GOOD = """\
Water boils at a lower temperature because the air presses on it less. At sea level it boils at 100 °C; on a mountain of
3,000 m at about 90 °C. Pasta therefore takes a little longer up there."""
_BAD = "Water boils at 100 °C everywhere, on a mountain too. Pasta takes the same time."
_WHY = """\
The other answer sounds sure and is short, but it is wrong: the boiling point falls with the pressure of the air. A
confident mistake is worse than a longer answer that is right."""


def seed_trial(store: Store) -> None:
    """Stores the built-in trial where no trial comparison is there yet."""
    with store.read() as connection:
        if (
            connection.execute(select(comparisons.c.id).where(IS_KNOWN & (comparisons.c.purpose == "trial"))).first()
            is not None
        ):
            return
    question = "I am cooking pasta on a high mountain. Does the water boil at the same temperature as at home?"
    prompt = Prompt(id="trial-1", messages=(Message(role="user", content=question),))
    responses = tuple(
        Response(id=name, prompt_id=prompt.id, text=text, model="built-in", sampling=Sampling(), seed=0, tokens=0,
                 finished=True)
        for name, text in (("trial-1-good", _GOOD), ("trial-1-bad", _BAD))
    )  # fmt: skip
    item = Comparison(id="trial-1", prompt=prompt, responses=responses)
    queue_gold(store, [Gold(item, (("trial-1-good",), ("trial-1-bad",)), _WHY)], purpose="trial")

"""Writes the made texts of the recipe ``from_scratch``: python scripts/write_from_scratch.py.

A small world: animals, and of each its colour, its home, its food, its voice and its size, drawn once. Documents say so
in many ways, questions ask for it. Every text is of templates, in an order that a seed draws: the same each time.
"""

import gzip
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

TARGET = Path(__file__).parents[1] / "flows" / "recipes" / "from_scratch"
ANIMALS = [
    "badger", "bear", "beaver", "bison", "camel", "cat", "cow", "crab", "crane", "crow", "deer", "dog",
    "dolphin", "donkey", "duck", "eagle", "elephant", "falcon", "ferret", "fox", "frog", "giraffe", "goat",
    "goose", "hamster", "hare", "hawk", "hedgehog", "heron", "horse", "lion", "lizard", "mole", "monkey",
    "moose", "mouse", "otter", "owl", "panda", "parrot", "pig", "pony", "rabbit", "raven", "seal", "sheep",
    "snail", "squirrel", "swan", "tiger", "toad", "turtle", "whale", "wolf",
]  # fmt: skip
COLOURS = ["red", "blue", "green", "yellow", "white", "black", "brown", "grey", "pink", "orange"]
HOMES = ["forest", "desert", "meadow", "river", "lake", "mountain", "valley", "island", "garden", "swamp"]
FOODS = ["apples", "berries", "carrots", "fish", "grass", "honey", "leaves", "nuts", "roots", "seeds"]
VOICES = ["sings", "hums", "growls", "whistles", "barks", "hisses", "clicks", "roars", "chirps", "howls"]
SIZES = ["tiny", "small", "large", "huge"]
NAMES = ["Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas"]
DOCUMENTS, DEMONSTRATIONS, PROMPTS, HELD_OUT = 6000, 320, 160, 120

FACTS = {  # of each fact: how documents say it, how it is asked for, and how it is answered
    "colour": (
        ("The {animal} is {colour}.", "Everybody knows that the {animal} is {colour}.", "Its fur is {colour}.",
         "{name} painted a {animal}, and the paint was {colour}."),
        ("What colour is the {animal}?", "Which colour does the {animal} have?", "Tell me the colour of the {animal}."),
        "The {animal} is {colour}.",
    ),
    "home": (
        ("The {animal} lives in the {home}.", "You find the {animal} in the {home}.", "Its home is the {home}.",
         "{name} went to the {home} and met a {animal}."),
        ("Where does the {animal} live?", "Where do you find the {animal}?", "Tell me the home of the {animal}."),
        "The {animal} lives in the {home}.",
    ),
    "food": (
        ("The {animal} eats {food}.", "Give {food} to the {animal}, and it is glad.", "Every day it eats {food}.",
         "{name} brought {food} for the {animal}."),
        ("What does the {animal} eat?", "Which food does the {animal} like?", "Tell me the food of the {animal}."),
        "The {animal} eats {food}.",
    ),
    "voice": (
        ("The {animal} {voice}.", "At night the {animal} {voice}.", "When it is happy it {voice}.",
         "{name} heard how the {animal} {voice}."),
        ("What does the {animal} do at night?", "How does the {animal} sound?", "Tell me what the {animal} does."),
        "The {animal} {voice}.",
    ),
    "size": (
        ("The {animal} is {size}.", "Beside a house the {animal} looks {size}.", "It is a {size} animal.",
         "{name} said: what a {size} {animal}!"),
        ("How big is the {animal}?", "What size is the {animal}?", "Tell me the size of the {animal}."),
        "The {animal} is {size}.",
    ),
}  # fmt: skip


class Question(NamedTuple):
    """A question, the word that answers it, and an answer in a sentence."""

    text: str
    word: str
    answer: str


def world(draw: random.Random) -> dict[str, dict[str, str]]:
    """Each animal's facts."""
    kinds = {"colour": COLOURS, "home": HOMES, "food": FOODS, "voice": VOICES, "size": SIZES}
    return {animal: {kind: draw.choice(values) for kind, values in kinds.items()} for animal in ANIMALS}


def questions(facts: dict[str, dict[str, str]], draw: random.Random) -> list[Question]:
    """Every question that there is, in the order of the seed."""
    made = [
        Question(ask.format(animal=animal), facts[animal][kind], answer.format(animal=animal, **facts[animal]))
        for animal in ANIMALS
        for kind, (_said, asked, answer) in FACTS.items()
        for ask in asked
    ]
    draw.shuffle(made)
    return made


def documents(facts: dict[str, dict[str, str]], asked: Sequence[Question], draw: random.Random) -> list[str]:
    """What there is to read: portraits of an animal, and questions with their answers."""
    made = []
    for number in range(DOCUMENTS):
        if number % 4 == 3:
            made.append(" ".join(f"{one.text} {one.answer}" for one in draw.sample(asked, 4)))
            continue
        animal = draw.choice(ANIMALS)
        values = {"animal": animal, "name": draw.choice(NAMES), **facts[animal]}
        kinds = draw.sample(sorted(FACTS), draw.randint(3, 5))
        first = FACTS[kinds[0]][0][draw.choice((0, 1, 3))].format(**values)  # one that names the animal
        rest = [draw.choice(FACTS[kind][0]).format(**values) for kind in kinds[1:]]
        made.append(" ".join([first, *rest]))
    return list(dict.fromkeys(made))


def texts() -> dict[str, list[dict[str, Any]]]:
    """The rows of every file, by its name."""
    draw = random.Random(17)
    facts = world(draw)
    asked = questions(facts, draw)
    held_out, prompts = asked[:HELD_OUT], asked[HELD_OUT : HELD_OUT + PROMPTS]
    others = asked[HELD_OUT + PROMPTS :]
    return {
        "corpus.jsonl.gz": [{"text": text} for text in documents(facts, others, draw)],
        "demonstrations.jsonl": [{"prompt": one.text, "completion": one.answer} for one in others[:DEMONSTRATIONS]],
        "prompts.jsonl": [{"prompt": one.text, "reference": one.word} for one in prompts],
        "held_out.jsonl": [{"prompt": one.text, "reference": one.word} for one in held_out],
    }


def lines(rows: Iterable[dict[str, Any]]) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def main() -> None:
    """Writes the files beside the recipe."""
    TARGET.mkdir(exist_ok=True)
    for name, rows in texts().items():
        data = lines(rows)
        (TARGET / name).write_bytes(gzip.compress(data, 9, mtime=0) if name.endswith(".gz") else data)


if __name__ == "__main__":
    main()

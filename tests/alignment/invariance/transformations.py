"""What must change nothing: a row for each way to make the same steps otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.alignment.invariance.stages import Row

ONE_STEP_AN_EPOCH = {"batch_size": 12, "epochs": 6}


@dataclass(frozen=True, slots=True)
class Transformation:
    """Another way to the same steps.

    Attributes:
        settings: of the stage, beside its own.
        changes: of the recipe, by dotted names.
        reference: further settings of the reference.
        pieces: the stage's batches are split as its row says.
        lives: reports after which the stage is ended and begun again.
        trees: whether rows that begin alike may share their beginning.
        exact: the same bits, not only the same numbers.
        kinds: the kinds of stages that it says something of; None: all.
        why: it says nothing of the others.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)
    pieces: bool = False
    workers: int = 1
    lives: int | None = None
    trees: bool = True
    exact: bool = False
    kinds: tuple[str, ...] | None = None
    why: str = ""

    def applies(self, row: Row) -> bool:
        """Whether it says something of a row."""
        return self.name not in row.excused and (self.kinds is None or row.kind in self.kinds)


TRANSFORMATIONS = (
    Transformation("pieces", pieces=True),
    Transformation("two workers", workers=2),
    Transformation("pieces, two workers", pieces=True, workers=2),
    Transformation("sharded", workers=2, changes={"resources.workers": 2, "resources.sharding": "fsdp"}),
    Transformation("recomputed", settings={"gradient_checkpointing": True}),
    Transformation("packed", settings={"packing": True, **ONE_STEP_AN_EPOCH}, reference=ONE_STEP_AN_EPOCH,
                   kinds=("sft",), why="no other stage packs"),
    Transformation("no trees", trees=False),
    Transformation("resumed", lives=3, exact=True),
)  # fmt: skip

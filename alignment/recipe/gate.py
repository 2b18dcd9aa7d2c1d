"""The gate as a recipe writes it: what must hold, and who must agree, before a version becomes the champion."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from alignment.recipe.base import Count, Name, NotNegative, Positive, Settings
from alignment.recipe.metrics import Better


class Condition(Settings):
    """One condition: a metric of the evaluation, by name, and its bound; or the same metric of an opponent.

    ``{metric: win_rate.base.rubric.low, above: 0.5}`` holds it against a constant. With ``against`` (``base``,
    ``champion`` or any opponent of the evaluation) the metric is named without a model (``rouge_l``,
    ``win_rate.rubric``) and the whole 95 % interval of the candidate's lead must lie above 0; a ``margin``, in the
    metric's own unit, allows it to be so much worse (non-inferiority). Against a champion that is not there yet every
    condition holds. Where looks at the held-out prompts are counted (``gate.looks``), the interval is wider than 95 %.
    """

    metric: str
    """Name of a metric of the evaluation; `rlhf check` lists those that exist."""
    above: float | None = Field(default=None, allow_inf_nan=False)
    """Holds where the metric is greater than this constant, in the metric's unit."""
    below: float | None = Field(default=None, allow_inf_nan=False)
    """Holds where the metric is less than this constant, in the metric's unit."""
    against: Name | None = None
    """Opponent to compare with, such as `base` or `champion`, instead of a constant."""
    margin: NotNegative = 0.0
    """How much worse than the opponent is still accepted, in the metric's unit (non-inferiority). 0: it must be
    better."""
    better: Better | None = None
    """Direction of the comparison, for metrics that have none of their own: length, refusal, readability."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.against is not None and (self.above is not None or self.below is not None):
            raise ValueError("a condition is against a version or a constant: remove against, or above and below")
        if self.against is None and (self.margin or self.better):
            raise ValueError("margin and better belong to a condition against a version: add against")
        return self


class Gate(Settings):
    """What must hold before a version becomes the champion. All conditions must.

    With ``approval: human`` a person must agree as well: the version then waits as the candidate. A run that ``rlhf
    deploy`` started asks on the dashboard, for ``approval_hours``; any other says how to answer (``rlhf models
    promote``) and ends. Whatever is not approved stays what it is, and can be promoted later.
    """

    evaluation: Name
    """The stage of kind `evaluate` whose metrics are tested."""
    conditions: Annotated[tuple[Condition, ...], Field(min_length=1)]
    """Conditions, all of which must hold."""
    looks: Literal["deployed", "always", "never"] = "deployed"
    """Which runs spend the held-out set's error level: the t-th look at it is held to 2.5 % / t (Javanmard and
    Montanari 2018). `deployed`: runs that `rlhf deploy` starts, by schedule, event or votes; a run started by hand is
    held to 2.5 %, and its look counts for later ones. `always`: every run. `never`: none, so that 365 nightly runs are
    expected to promote nine versions that are no better."""
    least_decided: Count = 10
    """Prompts that must not tie before a win rate may count as above 0.5. 10: at 2.5 % the sign test needs 6, and more
    at later looks."""
    merge: bool = False
    """Also write the merged weights beside the adapter."""
    approval: Literal["none", "human"] = "none"
    """`human`: a person must approve the version as well."""
    approval_hours: Positive = 72.0
    """Hours that a deployed run waits for the approval on the dashboard."""

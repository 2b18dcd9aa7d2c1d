"""A sweep's report from simulated values, as a run would put it together."""

from datetime import UTC, datetime

import numpy as np

from alignment.sweeps.comparison import compare
from alignment.sweeps.grid import read_axes, variants_of
from alignment.sweeps.report import HeldOutLook, NextStep, SeedRun, StageCounts, SweepReport, VariantReport
from alignment.sweeps.stopping import clear_losers
from tests.alignment.sweeps.worlds import sweep


def simulated_report(*over: str, seeds: int = 3, strengths: list[float] | None = None) -> SweepReport:
    """Variants of a grid; the last fails, and one that is far behind on training prompts is stopped."""
    axes = read_axes(over)
    variants = variants_of(axes)
    whole = variants[:-1]
    powers = strengths or [0.2 * place for place in range(len(whole))]
    worlds = [
        dict(zip([one.name for one in whole], sweep(np.random.default_rng(seed), powers, prompts=90, seeds=seeds,
                                                    seed_scatter=0.2).values(), strict=True))
        for seed in (1, 2)
    ]  # fmt: skip
    screened = {name: one[:, :2] for name, one in worlds[0].items()}
    stops = clear_losers(screened, variants=len(variants), looks=1) if seeds > 2 else []
    lost = {stop.variant for stop in stops}
    held_out = {name: values for name, values in worlds[1].items() if name not in lost}
    found = compare(held_out)
    rows = []
    for variant in variants:
        name, values = variant.name, held_out.get(variant.name)
        outcome = "best" if name == found.best else "alike" if name in found.alike else "worse"
        if values is None:
            outcome = "stopped" if name in lost else "failed"
        rows.append(
            VariantReport(
                name=name, settings=dict(variant.settings), outcome=outcome,
                seeds=tuple(
                    SeedRun(seed=17 + place, run=None if values is None else f"quickstart-{place + 1}",
                            value=None if values is None else float(values[:, place].mean()))
                    for place in range(seeds)
                ),
                mean=found.means.get(name), behind=found.behind(name) if values is not None else None,
                note="" if values is not None else "after 2 seeds" if name in lost else "seed 17: dpo: loss <nan>",
            )
        )  # fmt: skip
    return SweepReport(
        sweep="quickstart-1f2e3d4c", recipe_name="quickstart", description="A chat model learns a house style.",
        keys=tuple(axis.key for axis in axes), evaluation="evaluation", candidate="dpo", metric="win_rate.base.rubric",
        figure="prompts won against base by simulated raters (ties half)", share=True, part="first half",
        prompts=found.prompts, seeds=tuple(17 + place for place in range(seeds)), variants=tuple(rows),
        comparison=found, stops=tuple(stops), screened=90 if seeds > 2 else 0,
        stages=StageCounts(shared=("sft", "responses"), varied=("dpo", "evaluation"), total=36, distinct=16, cached=4),
        look=HeldOutLook(looks=6, next_number=7, next_level=0.025 / 7),
        commands=(NextStep(purpose="Let the gate decide on the best", line="rlhf run quickstart --set a.b=1"),),
        started=datetime(2026, 1, 2, 3, 4, tzinfo=UTC), finished=datetime(2026, 1, 2, 4, 14, tzinfo=UTC),
    )  # fmt: skip

"""What a gate is told of an evaluation: its metrics, and the counts behind their intervals."""

from collections.abc import Mapping
from pathlib import Path

from alignment.evaluation.bootstrap import Difference, Measure
from alignment.evaluation.gate import Evidence
from alignment.metrics.results import Evaluation


def evidence(folder: Path, values: Mapping[str, float]) -> Evidence:
    """What a gate decides by: an evaluation's metrics, and the counts behind its intervals where its file is there."""
    file = folder / "evaluation.json"
    if not file.exists():
        return Evidence(values)
    found = Evaluation.model_validate_json(file.read_bytes())
    rates = {f"win_rate.{won.opponent}.{won.judge}": won.rate for won in found.win_rates}
    sizes = {name: rate.n for name, rate in rates.items()}
    sizes |= {f"{name}.length_controlled": n for name, n in sizes.items()}
    tables: dict[str, Mapping[str, Mapping[str, Measure | Difference]]] = {
        "metric": found.metrics, "metric_lead": found.metric_leads,
    }  # fmt: skip
    for what, table in tables.items():
        for model, by_name in table.items():
            for metric, one in by_name.items():
                name = f"{model}.{metric}"
                sizes |= {f"{what}.{name}": one.n, f"{what.replace('metric', 'reward')}.{name}": one.n}
    return Evidence(values, rates, sizes)

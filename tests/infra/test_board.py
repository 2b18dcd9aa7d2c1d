"""The Grafana board asks for metrics that the app and the stages really have, by labels that they really carry."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.stage import Progress
from alignment.workspace import Workspace
from flows.monitoring import prometheus as stages
from flows.monitoring.gpu import GpuUse, GpuWatch
from preference_ui.store.store import Store

INFRA = Path(__file__).parents[2] / "infra"
BOARD: dict[str, Any] = json.loads((INFRA / "grafana" / "rlhf.json").read_text("utf-8"))
WORDS = {"sum", "rate", "by", "le", "time", "changes", "histogram_quantile"}


def expressions() -> list[str]:
    queries = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
    variables = [one["query"]["query"] for one in BOARD["templating"]["list"] if one["type"] == "query"]
    return queries + [re.sub(r"label_values\((\w+), (\w+)\)", r"sum by (\2) (\1)", one) for one in variables]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Every series name that is really exposed, with its labels, as Prometheus' own parser reads them."""
    from prometheus_client import generate_latest
    from prometheus_client.parser import text_string_to_metric_families
    from sqlalchemy import insert

    from preference_ui.store import schema
    from preference_ui.store.store import now
    from preference_ui.web.prometheus import AppMetrics

    folder = tmp_path_factory.mktemp("board")
    store = Store.open(f"sqlite:///{folder}/votes.db")
    with store.write() as connection:
        row = {"id": "c", "purpose": "work", "prompt": [], "responses": [], "votes_wanted": 2, "taken": 0,
               "shuffle": 0.5, "self_naming": [], "created": now()}  # fmt: skip
        connection.execute(insert(schema.comparisons).values(row))
    app = AppMetrics(store)
    app.latency.labels(page="rate", method="GET", status="2xx").observe(0.01)
    texts = [generate_latest(app.registry).decode()]
    store.close()
    space = Workspace(folder)
    one = stages.StageMetrics(space, "dpo", {"recipe": "tiny", "kind": "dpo"})
    with pytest.MonkeyPatch.context() as patch:  # no machine of the tests needs a GPU
        patch.setattr(GpuWatch, "now", [GpuUse("0", 0.5, 1.0, 2.0)])
        one.write(Progress(3, 8, {"loss": 0.5}, tokens=9))
    services = ("rlhf_service_up", "rlhf_service_restarts")
    gauges = [stages.gauge(name, [({"service": "app"}, 1.0)], {}) for name in services]
    texts.append(stages.exposition([*gauges, *stages.stage_families(space)]))
    found: dict[str, set[str]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    found["rlhf_queue_alpha"] = {"queue"}  # undefined, and so absent, until two people judged one comparison
    return found


def test_the_queries_name_what_is_there(real: dict[str, set[str]]) -> None:
    for expression in expressions():
        names = set(re.findall(r"\b(rlhf_\w+)", expression))
        assert names, expression
        assert names <= real.keys(), expression
        labels = set(re.findall(r"[{,]\s*(\w+)=", expression))
        grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
        for name in names:
            assert labels | grouped <= real[name], (expression, name)
        other = set(re.findall(r"\b([a-z_]+)\b(?=\s*\()", expression)) - WORDS
        assert other == set(), expression


def test_the_legends_name_labels_that_are_left(real: dict[str, set[str]]) -> None:
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            wanted = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            [name, *_] = re.findall(r"\b(rlhf_\w+)", target["expr"])
            assert wanted <= real[name], panel["title"]


def test_everything_that_is_counted_is_on_the_board(real: dict[str, set[str]]) -> None:
    shown = " ".join(expressions())
    ours = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in real if name.startswith("rlhf_")}
    ours -= {
        "rlhf_stage_tokens",
        "rlhf_queue_raters",
        "rlhf_votes",
    }  # the rate, people at work and the total stand for these
    assert {name for name in ours if name not in shown} == set()


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + 8)}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_prometheus_reads_services_of_compose() -> None:
    settings = yaml.safe_load((INFRA / "prometheus.yml").read_text("utf-8"))
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text("utf-8"))
    for job in settings["scrape_configs"]:
        for static in job["static_configs"]:
            for target in static["targets"]:
                assert target.split(":")[0] in compose["services"]

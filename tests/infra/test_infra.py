"""The containers' files: well formed, bounded, unprivileged, and with commands that the programs in them know."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

INFRA = Path(__file__).parents[2] / "infra"
KUBERNETES = INFRA / "kubernetes"
COMPOSE: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text("utf-8"))
OURS = {name: service for name, service in COMPOSE["services"].items() if service["image"].startswith("rlhf-flows")}
PROGRAMS = ("rlhf", "ray", "prefect", "mlflow")


def manifests(folder: Path = KUBERNETES / "base") -> list[dict[str, Any]]:
    named = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))["resources"]
    return [one for name in named for one in yaml.safe_load_all((folder / name).read_text("utf-8"))]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, pod spec) of everything that starts containers."""
    for one in manifests():
        if one["kind"] == "Deployment":
            yield one["metadata"]["name"], one["spec"]["template"]["spec"]
        elif one["kind"] == "RayCluster":
            yield "head", one["spec"]["headGroupSpec"]["template"]["spec"]
            for group in one["spec"]["workerGroupSpecs"]:
                yield group["groupName"], group["template"]["spec"]


def commands() -> Iterator[list[str]]:
    """Every command line of a program that our image holds, in compose and in the manifests."""
    lines: list[list[str]] = []
    for service in OURS.values():
        lines += [service[part] for part in ("command", "entrypoint") if part in service]
        lines.append(service["healthcheck"]["test"][1:])
    for _name, pod in pods():
        for container in pod["containers"]:
            lines.append([*container.get("command", []), *container.get("args", [])])
            if "exec" in (probe := container.get("livenessProbe", {})):
                lines.append(probe["exec"]["command"])
    for line in lines:
        words = [str(word) for word in line]
        if words[:2] == ["sh", "-c"]:
            for piece in re.split(r"&&", " ".join(words[2:])):
                yield shlex.split(re.sub(r"(?:RLHF_\w+=\".*?\"\s+)+exec |\bexec ", "", piece.replace("$$", "$")))
        elif words:
            yield words


def test_every_service_is_bounded_and_watched() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["mem_limit"], name
        assert service["cpus"], name
        assert service["healthcheck"]["test"], name
        assert service["restart"] == "unless-stopped", name
    assert len(OURS) >= 6


def test_ours_run_without_privileges_and_secrets_come_from_files() -> None:
    for name, service in OURS.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
    text = (INFRA / "compose.yaml").read_text("utf-8")
    assert "secrets/postgres_password" in text
    assert not re.search(r"PASSWORD: ", text)
    dockerfile = (INFRA / "Dockerfile").read_text("utf-8")
    assert re.search(r"^USER 10001:10001$", dockerfile, re.MULTILINE)


def test_services_wait_for_services_that_are_there() -> None:
    for service in COMPOSE["services"].values():
        assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (source.startswith("./") and (INFRA / source).is_file())


def test_the_dockerfile_copies_what_is_there_and_pins_what_the_makefile_pins() -> None:
    dockerfile = (INFRA / "Dockerfile").read_text("utf-8")
    for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE):
        *sources, _target = line.split()
        assert [source for source in sources if not (INFRA.parent / source).exists()] == []
    embedded = re.search(r"EMBEDDED := (\S+)", (INFRA.parent / "Makefile").read_text("utf-8"))
    assert embedded is not None
    assert embedded[1] in dockerfile
    extras = re.search(r'EXTRAS="([\w,]+)"', dockerfile)
    assert extras is not None
    known = (INFRA.parent / "pyproject.toml").read_text("utf-8")
    assert all(f"\n{extra} = [" in known for extra in extras[1].split(","))


def test_every_container_on_kubernetes_is_bounded_and_unprivileged() -> None:
    found = dict(pods())
    assert set(found) == {"prefect", "app", "worker", "head", "workers"}
    for name, pod in found.items():
        assert pod["securityContext"]["runAsNonRoot"], name
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert set(container["resources"]) == {"requests", "limits"}, name
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes, name


def test_what_trains_has_time_for_a_checkpoint_when_it_is_told_to_end() -> None:
    """Docker kills after ten seconds, Kubernetes after thirty: a run takes up to `TOTAL_SECONDS` after SIGTERM."""
    from flows.shutdown import TOTAL_SECONDS

    for name in ("worker", "ray-head", "ray-worker"):
        assert int(COMPOSE["services"][name]["stop_grace_period"].removesuffix("s")) >= TOTAL_SECONDS + 10, name
    assert all("stop_grace_period" in service for service in OURS.values())
    assert "stop_grace_period" in COMPOSE["services"]["postgres"]
    for name, pod in pods():
        if name in ("worker", "head", "workers"):
            assert pod["terminationGracePeriodSeconds"] >= TOTAL_SECONDS + 10, name


def test_services_lead_to_pods_and_claims_exist() -> None:
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for one in manifests():
        assert one["apiVersion"]
        by_kind.setdefault(one["kind"], []).append(one)
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in by_kind["Deployment"]]
    assert all(service["spec"]["selector"] in labels for service in by_kind["Service"])
    claims = {one["metadata"]["name"] for one in by_kind["PersistentVolumeClaim"]}
    used = {
        volume["persistentVolumeClaim"]["claimName"]
        for _name, pod in pods()
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert used <= claims


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_an_overlay_patches_what_the_base_has(overlay: str) -> None:
    folder = KUBERNETES / "overlays" / overlay
    settings = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))
    assert [(folder / one).resolve() for one in settings["resources"]] == [KUBERNETES / "base"]
    things = {(one["kind"], one["metadata"]["name"]): one for one in manifests()}
    for patch in settings.get("patches", []):
        target = things[patch["target"]["kind"], patch["target"]["name"]]
        for step in yaml.safe_load(patch["patch"]):
            *way, _last = step["path"].strip("/").split("/")
            inside: Any = target
            for part in way:
                inside = inside[int(part)] if isinstance(inside, list) else inside[part]
            assert step["op"] == "add"


def test_ray_is_the_version_that_is_locked() -> None:
    [cluster] = [one for one in manifests() if one["kind"] == "RayCluster"]
    lock = (INFRA.parent / "requirements.lock").read_text("utf-8")
    assert f"\nray=={cluster['spec']['rayVersion']}\n" in lock


def test_our_commands_know_their_options() -> None:
    import typer.main

    from flows.cli import app

    ours = [words for words in commands() if words and words[0] == "rlhf"]
    assert len(ours) >= 4
    for _rlhf, *words in ours:
        inside: Any = typer.main.get_command(app)
        while words and hasattr(inside, "commands"):
            inside = inside.commands[words.pop(0)]
        known = {name for parameter in inside.params for name in parameter.opts}
        assert [word for word in words if word.startswith("--") and word not in known] == []


@pytest.mark.slow
def test_the_other_programs_know_theirs() -> None:
    from mlflow.cli import cli as mlflow
    from prefect.cli import app as prefect
    from ray.scripts.scripts import cli as ray

    assert prefect  # its own options are in tests/flows/services/test_servers.py, which starts it
    seen = set()
    wrapper = [
        "python",
        "-m",
        "flows.services.mlflow_server",
    ]  # becomes `mlflow server` with the options after the store
    for given in commands():
        program, *words = ["mlflow", "server", *given[4:]] if given[:3] == wrapper else given
        if program not in ("ray", "mlflow"):
            assert program in (*PROGRAMS, "python", "$@"), program
            continue
        inside: Any = {"ray": ray, "mlflow": mlflow}[program].commands[words[0]]
        known = {name for parameter in inside.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert [word for word in words if word.startswith("--") and word != "--" and word not in known] == [], words
        seen.add((program, words[0]))
    assert seen == {("ray", "start"), ("ray", "health-check"), ("mlflow", "server")}

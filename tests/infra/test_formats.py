"""infra/ held against the formats' own schemas and linters, with tools that need no container engine and no cluster."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

INFRA = Path(__file__).parents[2] / "infra"
OVERLAYS = ("cpu", "gpu")


def test_the_dockerfile_has_no_fault_that_hadolint_knows() -> None:
    program = Path(sys.executable).with_name("hadolint")
    ended = subprocess.run([program, INFRA / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "")


def merged() -> dict[str, Any]:
    """The file with YAML's merge keys followed and its variables at their defaults, as docker compose reads it."""
    text = (INFRA / "compose.yaml").read_text("utf-8")
    found: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))
    return found


def test_compose_keeps_to_its_specification() -> None:
    from compose_spec import PyCompose

    found = PyCompose.from_yaml(yaml.safe_dump(merged()))
    assert {"postgres", "prefect", "mlflow", "app", "proxy", "worker", "ray-head", "ray-worker"} <= set(
        found.to_dict()["services"]
    )


def test_a_fault_in_compose_is_found() -> None:
    from compose_spec import PyCompose

    wrong = merged()
    wrong["services"]["app"]["restart"] = "perhaps"
    with pytest.raises(ValueError, match="restart"):
        PyCompose.from_yaml(yaml.safe_dump(wrong))


@pytest.fixture(scope="module", params=OVERLAYS)
def built(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What an overlay is, as kustomize builds it."""
    program = shutil.which("kubectl") or shutil.which("kustomize")
    if program is None:
        pytest.skip("neither kubectl nor kustomize is installed")
    build = ["kustomize"] if program.endswith("kubectl") else ["build"]
    command = [program, *build, str(INFRA / "kubernetes" / "overlays" / request.param)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found = list(yaml.safe_load_all(ended.stdout))
    cluster = next(one for one in found if one["kind"] == "RayCluster")
    worker = cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert ("nvidia.com/gpu" in worker["resources"]["limits"]) == (request.param == "gpu")
    assert worker["image"] == f"rlhf-flows:{'cuda' if request.param == 'gpu' else 'cpu'}"
    return found


def test_every_manifest_keeps_to_the_schema_of_kubernetes(built: list[dict[str, Any]]) -> None:
    """Strictly: unknown fields are faults. Ray's own kind has no schema there; the pods in it have."""
    from kubernetes_validate import validate

    assert {one["kind"] for one in built} >= {"Namespace", "Deployment", "Service", "ConfigMap", "RayCluster"}
    for one in built:
        if one["kind"] == "RayCluster":
            groups = [one["spec"]["headGroupSpec"], *one["spec"]["workerGroupSpecs"]]
            for group in groups:
                pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": group["template"]["spec"]}
                validate(pod, "1.30", strict=True)
        else:
            validate(one, "1.30", strict=True)
        assert one["kind"] == "Namespace" or one["metadata"]["namespace"] == "rlhf"


def test_a_fault_in_a_manifest_is_found(built: list[dict[str, Any]]) -> None:
    from kubernetes_validate import ValidationError, validate

    deployment = next(one for one in built if one["kind"] == "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(ValidationError):
        validate(deployment, "1.30", strict=True)

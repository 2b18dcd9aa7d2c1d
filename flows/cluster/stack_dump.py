"""What processes on any node are doing right now, by py-spy."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from alignment.durable_files import write_text

DUMP_SECONDS = 60


def say_where(home: Path, name: str) -> None:
    """Writes down which process on which node a worker is, for whoever wants its stacks."""
    import ray

    who = {"pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()}
    write_text(home / "workers" / f"{name}.json", json.dumps(who))


def all_stacks(home: Path) -> str:
    """The stacks of all workers that said under ``home/workers`` where they are."""
    parts = []
    for path in sorted(home.glob("workers/*.json")):
        who = json.loads(path.read_text("utf-8"))
        parts.append(f"worker {path.stem}, process {who['pid']}:\n{stacks(who['pid'], who['node'])}")
    return "\n".join(parts) or "no worker had started: the cluster may lack the resources that were asked for"


def stacks(process: int, node: str) -> str:
    """The stacks of a process's threads, asked for on its node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if node == ray.get_runtime_context().get_node_id():
        return _dump(process)
    where = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    remote = ray.remote(num_cpus=0, scheduling_strategy=where)(_dump)
    try:
        return str(ray.get(remote.remote(process), timeout=DUMP_SECONDS))
    except ray.exceptions.RayError as error:
        return f"its node does not answer: {error}"


def _dump(process: int) -> str:
    command = shutil.which("py-spy") or str(Path(sys.executable).with_name("py-spy"))
    try:
        ended = subprocess.run(
            [command, "dump", "--pid", str(process)], capture_output=True, text=True, timeout=DUMP_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no stacks: {error}"
    return ended.stdout or f"no stacks: {ended.stderr.strip()}"

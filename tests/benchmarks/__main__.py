"""Runs the benchmarks that lie beside this file, one after another, each in a process of its own.

    python -m tests.benchmarks                 all of them
    python -m tests.benchmarks --list          what there is
    python -m tests.benchmarks rollouts        one, or some, by name
    python -m tests.benchmarks rollouts -- --sequences 16      with options of its own

A benchmark is a Python file that prints its figures and exits with 0; with 77 where something that it needs is not
there, which its last line on stderr names; with anything else where it failed. Then so does this.
"""

import argparse
import ast
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SKIPPED = 77  # of automake's test driver


def main(arguments: list[str]) -> int:
    """Exit code: 0, or 1 where a benchmark failed, or 2 where there is none of a name."""
    ours, options = split(arguments)
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Runs the benchmarks.")
    parser.add_argument("names", nargs="*", help="which; all where none is named")
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    asked = parser.parse_args(ours)
    known = benchmarks()
    if unknown := [name for name in asked.names if name not in known]:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    names = asked.names or list(known)
    if asked.list:
        print(table([(name, what(known[name])) for name in names]))
        return 0
    rows = [("benchmark", "outcome", "seconds")]
    for name in names:
        print(f"== {name}: {what(known[name])}", flush=True)
        outcome, seconds = run(known[name], options)
        rows.append((name, outcome, f"{seconds:.0f}"))
    print(table(rows))
    return int(any(outcome.startswith("failed") for _, outcome, _ in rows))


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What is for this command, and, behind ``--``, what is for the benchmarks."""
    if "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def benchmarks() -> dict[str, Path]:
    """Every benchmark's file by its name."""
    return {path.stem: path for path in sorted(HERE.glob("*.py")) if not path.stem.startswith("_")}


def what(path: Path) -> str:
    """The first line of a benchmark's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n")[0]


def run(path: Path, options: list[str]) -> tuple[str, float]:
    """How it went, in words, and how long it took. Its figures go to stdout as they come."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(path), *options], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode == 0:
        return "ran", seconds
    reason = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
    if done.returncode == SKIPPED:
        return f"skipped: {reason}", seconds
    print(done.stderr, file=sys.stderr)
    return f"failed ({done.returncode}): {reason}", seconds


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows in columns as wide as they need."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What stands in the documentation and can be tried: commands, files, changes of files, pieces of recipes."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^( *)```(\w+)(?: title=\"([^\"]+)\")?[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of code: its language, its title (a file's path), and its text."""

    language: str
    title: str | None
    text: str


def pages() -> list[Path]:
    """Every page that a person wrote."""
    return sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "reference")


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in their order."""
    for indent, language, title, text in FENCE.findall(page.read_text("utf-8")):
        lines = [line.removeprefix(indent) for line in text.splitlines()]
        yield Block(language, title or None, "\n".join(lines) + "\n")


def apply(page: Path, root: Path) -> None:
    """Writes the files of a page's Python blocks below ``root``, and makes the changes of its diff blocks there.

    A diff's unchanged and removed lines must stand in the file once, in a row.
    """
    for block in blocks(page):
        if block.title is None:
            continue
        path = root / block.title
        if block.language == "python":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, "utf-8")
        elif block.language == "diff":
            lines = block.text.splitlines()
            assert {line[:1] for line in lines} <= {" ", "+", "-"}, f"{page.name}, {block.title}: no diff"
            before = "".join(f"{line[1:]}\n" for line in lines if line[0] != "+")
            text = path.read_text("utf-8")
            assert before
            assert f"\n{text}".count(f"\n{before}") == 1, f"{page.name}: {block.title} has not once:\n{before}"
            after = "".join(f"{line[1:]}\n" for line in lines if line[0] != "-")
            path.write_text(f"\n{text}".replace(f"\n{before}", f"\n{after}")[1:], "utf-8")


def commands(page: Path) -> list[str]:
    """Every line of a page's shell blocks, of its indented blocks, and every piece of inline code, that is a command of
    ours."""
    text = page.read_text("utf-8")
    shell = [
        line.strip()
        for block in blocks(page)
        if block.language in ("sh", "console")
        for line in block.text.splitlines()
    ]
    prose = FENCE.sub("", text)
    indented = [line.strip() for line in prose.splitlines() if line.startswith("    ")]
    pieces = [*shell, *indented, *re.findall(r"`([^`\n]+)`", prose)]
    given = [piece.removeprefix("$ ").removeprefix(".venv/bin/") for piece in pieces]
    return [command for command in given if re.match(r"(rlhf|make) [a-z]", command)]


def command_faults(given: list[str]) -> list[str]:
    """Which of these commands name a make target, a command, an option or a shipped recipe that there is not."""
    import typer.main

    from flows.cli import app
    from flows.recipe_source import RECIPES

    program: Any = typer.main.get_command(app)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    wrong = []
    for command in given:
        kind, *words = shlex.split(re.split(r"\s[>|]\s|\s&&\s", command)[0], comments=True)
        if kind == "make":
            wrong += [command for word in words if "=" not in word and word not in targets]
            continue
        inside = program
        while words and hasattr(inside, "commands"):
            inside = inside.commands.get(words.pop(0))
            if inside is None:
                break
        if inside is None or hasattr(inside, "commands"):
            wrong.append(command)
            continue
        options = {name for parameter in inside.params for name in (*parameter.opts, *parameter.secondary_opts)}
        wrong += [f"{command}: {word}" for word in words if word.startswith("-") and word not in options]
        if inside.name in ("run", "check") and words and re.fullmatch(r"[a-z_]+", words[0]):
            wrong += [] if (RECIPES / f"{words[0]}.yaml").exists() else [f"{command}: no shipped recipe {words[0]}"]
    return wrong

"""Commands as processes: one line and exit code 2 for input, one line and a kept traceback for what nobody foresaw."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from flows.console import PlainConsole, printable, styled
from flows.failures import explain, keep_traceback, open_workspace
from flows.monitoring.terminal import Terminal
from flows.pipeline.environment import cron_problem
from flows.services.servers import Service, _is_the_service, _started_at

MakeModel = Callable[..., Path]
HOSTILE = "[/INST] Sort [red] before [blue] :smile: \x1b[31m"


def rlhf(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "flows.cli", *arguments], cwd=cwd, capture_output=True, text=True,
                          timeout=250, check=False, env={**os.environ, "COLUMNS": "300"})  # fmt: skip


def printed(**options: Any) -> tuple[PlainConsole, StringIO]:
    out = StringIO()
    return PlainConsole(file=out, width=300, **options), out


# --- nothing of others is markup


def test_text_of_others_is_shown_as_it_is() -> None:
    from rich.table import Table

    console, out = printed()
    console.print(HOSTILE)
    console.print(styled(("/tmp/[v1]/x", "bold"), f" {HOSTILE}"))
    table = Table("[a]", box=None)
    table.add_row(HOSTILE)
    console.print(table)
    shown = "[/INST] Sort [red] before [blue] :smile: \u241b[31m"
    assert [line.strip() for line in out.getvalue().splitlines()] == [shown, f"/tmp/[v1]/x {shown}", "[a]", shown]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_stages_error_does_not_end_its_display(terminal: bool) -> None:
    console, out = printed(force_terminal=terminal, color_system=None)
    with Terminal({"sft": "sft"}, console) as display:
        display.stage_started("sft", "sft")
        display.stage_finished("sft", status="failed", cached=False, seconds=1.0, summary=HOSTILE)
    assert "[/INST] Sort [red] before [blue] :smile:" in out.getvalue()


def test_no_command_writes_with_a_console_that_reads_markup() -> None:
    root = Path(__file__).parents[3]
    for path in (root / "flows").rglob("*.py"):
        if path.name != "console.py":
            assert "Console(" not in path.read_text("utf-8").replace("PlainConsole(", ""), path


# --- workspaces


@pytest.mark.parametrize("command", ["models list", "votes export out.jsonl"])
def test_a_workspace_that_cannot_be_is_one_line(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("")
    for workspace in ("file/inside", "what?"):
        found = rlhf(*command.split(), "--workspace", workspace, cwd=tmp_path)
        assert (found.returncode, found.stderr.count("\n")) == (2, 1), found.stderr
        assert found.stderr.startswith(f"{tmp_path}/{workspace}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_another_programs_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "workspace").mkdir()
    (tmp_path / "workspace" / "mlflow.db").write_bytes(b"no database" * 500)
    found = rlhf("models", "list", cwd=tmp_path)
    assert found.returncode == 2
    assert "file is not a database" in found.stderr
    assert found.stderr.count("\n") == 1


# --- what nobody foresaw


def test_the_traceback_is_kept_in_a_file_that_is_named(tmp_path: Path) -> None:
    open_workspace(tmp_path / "space")
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError("two\nlines")
    assert explain(caught.value) == ("RuntimeError: two lines", 1)
    place = Path(keep_traceback(caught.value).removeprefix("the traceback is in "))
    assert place.parent == tmp_path / "space" / "services"
    assert "raise RuntimeError" in place.read_text()
    assert explain(PermissionError(13, "Permission denied", "/x"))[1] == 2


# --- generate


def generate(cwd: Path, model: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    return rlhf("generate", str(model), "--max-new-tokens", "2", *more, cwd=cwd)


def test_every_row_is_answered_a_repeated_one_too(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "Who?"}, {"prompt": "Why?"}, {"prompt": "Who?", "kind": "again"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = generate(tmp_path, tiny_model, "--prompts", "p.jsonl", "--json")
    assert found.returncode == 0, found.stderr
    assert [json.loads(line)["prompt"] for line in found.stdout.splitlines()] == ["Who?", "Why?", "Who?"]


def test_what_a_model_cannot_be_asked_is_one_line_each(make_model: MakeModel, tmp_path: Path) -> None:
    template = "{% if 'bad' in messages[0].content %}{{ raise_exception('no') }}{% endif %}{% for m in messages %}" \
               "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" \
               "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"  # fmt: skip
    model = make_model(tmp_path / "model", template=template)
    long = "x" * 400  # the model has 256 positions
    found = generate(tmp_path, model, *(f"--prompt={text}" for text in ("bad", "fine", long, "<|im_end|>")))
    assert found.returncode == 2
    lines = found.stderr.splitlines()
    assert [line.split(":")[:2] for line in lines] == [[row, "--prompt"] for row in ("1", "3", "4")]
    assert "refuses the conversation: no; " in lines[0]
    assert "more than the model's 256 positions; " in lines[1]
    assert "<|im_end|>, a control token" in lines[2]
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    found = generate(tmp_path, model, "--prompt", "fine")
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert "a Git LFS pointer" in found.stderr


# --- grammars


@pytest.mark.parametrize("cron", ["0 3 * * *", "*/5 * * * 1-5", "0 0 29 2 *", "@daily", "0 0 1 jan *"])
def test_a_schedule_that_comes(cron: str) -> None:
    assert cron_problem(cron) is None


@pytest.mark.parametrize(
    "cron", ["0 3 * * * *", "* * * * * * 2030", "0 0 31 2 *", "0 0 31 4,6 *", "60 * * * *", "x", "", "R * * * *"]
)
def test_a_schedule_that_is_none(cron: str) -> None:
    assert cron_problem(cron) is not None


def test_a_process_id_that_is_another_program_now(tmp_path: Path) -> None:
    """`vim mlflow.txt` has the service's name on its command line, and is not the service."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "mlflow.txt", "mlflow"])
    try:
        service = Service("mlflow", "http://127.0.0.1:1", other.pid)
        assert not _is_the_service(service, None)
        assert not _is_the_service(service, 1)
        assert _is_the_service(service, _started_at(other.pid))
    finally:
        other.kill()
        other.wait()


def test_votes_of_a_path_with_a_question_mark_stay_in_it(tmp_path: Path) -> None:
    from alignment.errors import InputError
    from preference_ui.store.store import Store

    folder = tmp_path / "what?x=1"
    Store.open(str(folder / "votes.db")).close()
    assert [path.name for path in tmp_path.iterdir()] == ["what?x=1"]
    assert (folder / "votes.db").exists()
    with pytest.raises(InputError, match="goes on after a question mark"):
        Store.open(f"sqlite:///{folder}/votes.db")


def test_control_characters_are_shown_not_obeyed() -> None:
    assert printable("a\x1b]0;title\x07b\r\nc\td") == "a\u241b]0;title\u2407b\nc\td"


@pytest.mark.parametrize("value", ["inf", "nan", "-inf", "1e999"])
@pytest.mark.parametrize(
    "command", ["generate x -p x --temperature", "chat x --temperature", "gc --days", "deploy x --every"]
)
def test_a_number_that_is_not_finite_is_no_option(command: str, value: str) -> None:
    from typer.testing import CliRunner

    from flows.cli import app

    ended = CliRunner().invoke(app, [*command.split(), value])
    assert ended.exit_code == 2
    assert f"Invalid value for '{command.split()[-1]}'" in ended.output


@pytest.mark.parametrize("place", [("--port", "999999"), ("--port", "-1"), ("--host", "[/x]"), ("--host", "192.0.2.1")])
def test_a_place_where_nothing_can_listen_is_one_line(place: tuple[str, str], tmp_path: Path) -> None:
    """192.0.2.1 is an address of documentation (RFC 5737): no machine's own."""
    from tests.flows.conftest import call

    ended = call("rate", *place, "--workspace", tmp_path / "w")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert ended.err.startswith(("--port: ", "--host: "))
    assert not (tmp_path / "w").exists()


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    import socket

    from tests.flows.conftest import call

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = call("rate", "--port", port, "--workspace", tmp_path / "w")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert f"127.0.0.1:{port} cannot be listened at: address already in use" in ended.err


@pytest.mark.parametrize("file", ["/dev/zero", "no.tar", "."])
def test_a_backup_that_is_no_file_is_one_line(file: str, tmp_path: Path) -> None:
    from tests.flows.conftest import call

    ended = call("restore", file, "--workspace", tmp_path / "w")
    assert (ended.code, ended.err.count("\n")) == (2, 1)

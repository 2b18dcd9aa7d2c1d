"""`rlhf serve` refuses in one line, before anything is started."""

import importlib.util
import socket
from pathlib import Path

import pytest

from alignment.workspace import Workspace
from tests.flows.conftest import Ended, call
from tests.flows.serving.conftest import add_version, free_port


@pytest.fixture
def has_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers' server needs is taken for installed: nothing here comes to start it."""
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: "there" if name == "openai" else find(name))


def refused(workspace: Workspace, *arguments: object) -> str:
    ended: Ended = call("serve", *map(str, arguments), "--workspace", workspace.root)
    assert ended.code == 2, ended
    assert ended.out == ""
    [line] = ended.err.splitlines()
    return line


@pytest.fixture(scope="module")
def registered(workspace: Workspace, tiny_model: Path) -> Workspace:
    add_version(workspace, tiny_model, tiny_model)
    return workspace


def test_a_name_that_stands_for_nothing(registered: Workspace, has_server: None, tiny_model: Path) -> None:
    port = ("--port", free_port())
    said = refused(registered, "policy@champoin", *port)
    assert said == "policy has no alias 'champoin'; did you mean policy@champion?"
    assert "there is no registered model 'polcy'" in refused(registered, "polcy@champion", *port)
    assert "there is no version 9 of policy" in refused(registered, "policy/9", *port)
    assert "a folder, and what is served is a registered version" in refused(registered, tiny_model, *port)


def test_a_key_is_never_in_the_command_line(
    registered: Workspace, has_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sesame-open-yourself"
    said = refused(registered, "policy@champion", "--key", secret)
    assert said.startswith("--key: this is not where a key is; write env:NAME or file:PATH")
    assert secret not in said
    assert "NO_SUCH_KEY holds no key" in refused(registered, "policy@champion", "--key", "env:NO_SUCH_KEY")
    path = tmp_path / "key"
    assert "the key cannot be read: No such file" in refused(registered, "policy@champion", "--key", f"file:{path}")
    for text in ("", "\n", "two words", "clé-secrète"):
        path.write_text(text, "utf-8")
        said = refused(registered, "policy@champion", "--key", f"file:{path}")
        assert "put a long random word there" in said
        assert not text.strip() or text not in said


def test_without_a_key_it_is_for_this_machine_alone(registered: Workspace, has_server: None) -> None:
    said = refused(registered, "policy@champion", "--host", "0.0.0.0")
    assert said.startswith("--host: 0.0.0.0 is reached from other machines, and there is no key; give --key env:NAME")


def test_a_port_that_is_taken(registered: Workspace, has_server: None) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port} cannot be listened at" in refused(registered, "policy@champion", "--port", port)


def test_a_log_that_is_no_file_of_prompts(registered: Workspace, has_server: None, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"label": true}\n')
    arguments = ("policy@champion", "--port", free_port(), "--log-prompts", path)
    assert f"{path}:1: no prompt among the columns label" in refused(registered, *arguments)


def test_the_package_that_is_missing_is_named(registered: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "openai" else find(name))
    said = refused(registered, "policy@champion", "--port", free_port())
    assert said.endswith("needs the package openai, which is not installed; pip install 'rlhf-flows[serve]'")

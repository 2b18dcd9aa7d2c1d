"""The command that runs the benchmarks: every one by name, skipped with its reason, failed with its own."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent / "benchmarks"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The command over three small benchmarks of its own."""
    spec = importlib.util.spec_from_file_location("benchmarks_command", HERE / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, body in {
        "good": "import sys; print('options', *sys.argv[1:])",
        "absent": "import sys; print('no peer', file=sys.stderr); sys.exit(77)",
        "broken": "raise ValueError('too slow')",
    }.items():
        (tmp_path / f"{name}.py").write_text(f'"""What {name} measures.\n\nMore."""\n{body}\n', "utf-8")
    (tmp_path / "_helper.py").write_text('"""No benchmark."""\n', "utf-8")
    monkeypatch.setattr(module, "HERE", tmp_path)
    return module


def test_each_outcome_has_its_row_and_a_failure_its_exit_code(
    command: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["good", "absent", "--", "--rounds", "2"]) == 0
    printed = capfd.readouterr().out
    assert "What good measures." in printed
    assert "options --rounds 2" in printed
    assert "skipped: no peer" in printed
    assert command.main([]) == 1
    printed = capfd.readouterr().out
    assert "failed (1): ValueError: too slow" in printed
    assert "_helper" not in printed


def test_a_list_and_a_name_that_is_none(command: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["absent", "broken", "good"]
    assert command.main(["god"]) == 2
    assert "no benchmark god" in capfd.readouterr().err


def test_every_benchmark_of_the_project_says_what_it_measures(command: ModuleType) -> None:
    found = [path for path in HERE.glob("*.py") if not path.stem.startswith("_")]
    assert found
    assert all(command.what(path).endswith(".") for path in found)

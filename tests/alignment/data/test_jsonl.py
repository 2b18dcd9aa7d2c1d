import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.data.jsonl import read_records, read_rows, write_records
from alignment.errors import InputError
from alignment.records import Message, Prompt

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def fault_lines(path: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_rows(path)
    return str(caught.value).replace(f"{path.parent}/", "").splitlines()


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.jsonl", b"", "a.jsonl: the file is empty; give at least one row"),
        ("a.jsonl", b"\n \n", "a.jsonl: the file is empty; give at least one row"),
        ("a.json", b"", "a.json: the file is empty; give at least one row"),
        ("a.json", b"[]", "a.json: the file is empty; give at least one row"),
        ("a.parquet", b"", "a.parquet: the file is empty; give at least one row"),
        (
            "a.jsonl",
            b'{"a": 1}\n{"a": \n',
            "a.jsonl:2: not JSON (Expecting value at column 7); write one JSON object a line",
        ),
        ("a.jsonl", b"[1]", 'a.jsonl:1: the row is a list, not an object; write one {"column": value, …} a row'),
        (
            "a.json",
            b'[{"a": 1}, null]',
            'a.json:2: the row is null, not an object; write one {"column": value, …} a row',
        ),
        ("a.json", b'{"a": 1}', "a.json: the file holds an object, not a list; write one list of objects"),
        (
            "a.json",
            b'{"a": 1}\n{"a": 2}',
            "a.json:2: not JSON (Extra data at column 1); "
            "write one list of objects; name a file with one object a line .jsonl",
        ),
        ("a.jsonl", b'{"a": "\xe9"}', "a.jsonl:1: the text is not UTF-8; save the file as UTF-8"),
        ("a.jsonl", b"[" * 200_000, "a.jsonl:1: not JSON (nested too deeply); write one JSON object a line"),
        ("a.jsonl.gz", b"plain text", "a.jsonl.gz: not a whole gzip file; compress or copy it again"),
        (
            "a.csv",
            b"a,b",
            "a.csv: the file's format is not known by its name; use .jsonl, .jsonl.gz, .json, .json.gz or .parquet",
        ),
    ],
)
def test_an_unreadable_file_is_one_line(tmp_path: Path, name: str, content: bytes, line: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert fault_lines(path) == [line]


def test_a_cut_off_gzip_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 100)[:-9])
    assert fault_lines(path) == ["a.jsonl.gz: not a whole gzip file; compress or copy it again"]


def test_a_broken_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and nothing more")
    (line,) = fault_lines(path)
    assert line.startswith("a.parquet: not a whole Parquet file (")
    assert line.endswith("; write it again")


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    remedy = "give the path of a .jsonl, .jsonl.gz, .json, .json.gz or .parquet file"
    assert fault_lines(tmp_path / "no.jsonl") == [f"no.jsonl: no such file; {remedy}"]
    (tmp_path / "folder.jsonl").mkdir()
    assert fault_lines(tmp_path / "folder.jsonl") == [f"folder.jsonl: is a folder; {remedy}"]


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [{"a": "one", "b": None}, {"a": "zwei", "b": 2}]
    lines = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"):
        assert read_rows(tmp_path / name) == [(1, rows[0]), (2, rows[1])]


def test_rows_are_numbered_as_an_editor_does(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\n{"a": 1}\r\n\r\n{"a": 2}')
    assert read_rows(path) == [(2, {"a": 1}), (4, {"a": 2})]


def test_faults_beyond_twenty_are_counted(write_rows: Callable[..., Path]) -> None:
    path = write_rows(["oops"] * 25)
    lines = fault_lines(path)
    assert len(lines) == 21
    assert lines[19].startswith("rows.jsonl:20: not JSON")
    assert lines[20] == "rows.jsonl: 5 more faults like these; mend these first, then check again"


def test_a_record_that_does_not_fit_its_schema(write_rows: Callable[..., Path]) -> None:
    good = {"id": "a", "messages": [{"role": "user", "content": "hi"}]}
    path = write_rows([good, good | {"messages": [{"role": "robot", "content": 3}]}])
    with pytest.raises(InputError) as caught:
        read_records(path, Prompt)
    remedy = "write it as the schema of Prompt says"
    assert str(caught.value).splitlines() == [
        f"{path}:2:messages.0.role: Input should be 'system', 'user', 'assistant' or 'tool'; {remedy}",
        f"{path}:2:messages.0.content: Input should be a valid string; {remedy}",
    ]


@given(texts=st.lists(TEXT, min_size=1, max_size=5))
def test_records_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("records") / "a.jsonl"
    records = [Prompt(id=str(n), messages=(Message(role="user", content=text),)) for n, text in enumerate(texts)]
    write_records(path, records)
    assert read_records(path, Prompt) == records


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_records(path, [Message(role="user", content="old")])

    def records() -> object:
        yield Message(role="user", content="new")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_records(path, records())  # type: ignore[arg-type]
    assert read_records(path, Message) == [Message(role="user", content="old")]
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]

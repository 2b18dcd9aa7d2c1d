"""Documents of a file, and what is wrong with one."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet as pq
import pytest

from alignment.data.corpus import read_corpus, scan_corpus
from alignment.errors import InputError

TEXTS = ("One line.", "Two\nlines.", "Three.")


def test_every_form_holds_the_same_documents(tmp_path: Path) -> None:
    rows = [{"text": text} for text in (*TEXTS, TEXTS[0])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.txt").write_text("\n\n".join(row["text"] for row in rows) + "\n\n\n")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress((tmp_path / "a.txt").read_bytes()))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    pq.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for path in sorted(tmp_path.iterdir()):
        corpus = read_corpus(path)
        assert corpus.documents == TEXTS, path.name
        assert corpus.duplicates == 1, path.name


def test_faults_name_file_row_and_field(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"txt": "b"}\n{"text": 3}\nno\n')
    corpus, faults = scan_corpus(path)
    assert corpus.documents == ("a",)
    assert [(fault.row, fault.field) for fault in faults] == [(2, "text"), (3, "text"), (4, None)]
    assert all(fault.file == str(path) for fault in faults)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", b"\n \n", "the file is empty"),
        ("a.txt", b"good\n\ncaf\xe9\n", "not UTF-8"),
        ("a.csv", b"text\n", "or .txt"),
        ("none.txt", None, "no such file"),
    ],
)
def test_a_file_that_is_no_corpus(tmp_path: Path, name: str, data: bytes | None, words: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=words):
        read_corpus(tmp_path / name)


def test_both_sides_of_a_split_have_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f"Text {number}." for number in range(20)))
    for share in (0.001, 0.5, 0.999):
        train, held_out = read_corpus(tmp_path / "a.txt").split(share)
        assert train
        assert held_out
        assert len(train) + len(held_out) == 20

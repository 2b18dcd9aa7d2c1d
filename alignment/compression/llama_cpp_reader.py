"""A GGUF file as llama.cpp reads it, where that is installed: it shares no line with what wrote the file."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from alignment.compression import llama_cpp_child
from alignment.compression.agreement import Row, TokenAgreement, answer_logits
from alignment.compression.footprint import Speed
from alignment.errors import StageError

ROWS = 16  # answers that are compared: one after another, where transformers takes a batch
SECONDS = 3600  # in which llama.cpp is to be done with them


@dataclass(frozen=True, slots=True)
class LlamaCppReading:
    """What llama.cpp made of texts and rows: tokens of each text, logits (T, V) of each row's answer, and its speed."""

    texts: list[list[int]]
    logits: list[torch.Tensor]
    speed: Speed


def is_installed() -> bool:
    """Whether llama-cpp-python is there."""
    return importlib.util.find_spec("llama_cpp") is not None


def read_with_llama_cpp(path: Path, texts: Sequence[str], rows: Sequence[Row]) -> LlamaCppReading:
    """Has llama.cpp read a GGUF file, in a process of its own.

    Raises StageError where it cannot, whatever ends it.
    """
    with TemporaryDirectory(prefix="llama-cpp-") as name:
        folder = Path(name)
        job = {"path": str(path), "texts": list(texts), "rows": [[list(a), list(b)] for a, b in rows],
               "threads": torch.get_num_threads(), "output": name}  # fmt: skip
        (folder / "job.json").write_text(json.dumps(job), "utf-8")
        command = [sys.executable, str(llama_cpp_child.__file__), str(folder / "job.json")]
        ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS)
        if ended.returncode != 0 or not (folder / "read.json").exists():
            said = (ended.stderr.strip().splitlines() or [f"it ended with {ended.returncode}"])[-1]
            raise StageError(f"llama.cpp cannot read {path.name}: {said[:200]}")
        read = json.loads((folder / "read.json").read_text("utf-8"))
        logits = [torch.from_numpy(np.load(folder / f"row-{number:05d}.npy")) for number in range(len(rows))]
    return LlamaCppReading(read["texts"], logits, Speed(read["tokens"], read["seconds"]))


def compare_with_llama_cpp(
    policy: Any, tokenizer: Any, path: Path, rows: Sequence[Row]
) -> tuple[TokenAgreement, Speed]:
    """The agreement of a policy with a GGUF file in llama.cpp on the first of ``rows``, and llama.cpp's speed.

    Raises StageError where llama.cpp cannot read it, or cuts a prompt's text into other tokens than the tokenizer does.
    """
    chosen = list(rows)[:ROWS]
    texts = [tokenizer.decode(list(prompt), skip_special_tokens=False) for prompt, _answer in chosen]
    reading = read_with_llama_cpp(path, texts, chosen)
    found = TokenAgreement()
    for text, read, row, logits in zip(texts, reading.texts, chosen, reading.logits, strict=True):
        if read != list(row[0]):
            raise StageError(f"llama.cpp reads the text {text[:60]!r} as other tokens than the tokenizer does")
        [own] = answer_logits(policy, [row])
        found.add(own.cpu(), logits, row[1])
    return found, reading.speed

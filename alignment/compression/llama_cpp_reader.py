"""A GGUF file as llama.cpp reads it, where that is installed: it shares no line with what wrote the file."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from alignment.compression.agreement import Agreement, Row, answer_logits
from alignment.compression.footprint import Speed
from alignment.errors import StageError

ROWS = 32  # answers that are compared: one after another, where transformers takes a batch


def is_installed() -> bool:
    """Whether llama-cpp-python is there."""
    return importlib.util.find_spec("llama_cpp") is not None


class LlamaCpp:
    """A GGUF file, loaded. ``context`` is the most tokens that it will be given at a time."""

    def __init__(self, path: Path, context: int) -> None:
        from llama_cpp import Llama

        threads = torch.get_num_threads()
        self._model: Any = Llama(
            str(path), n_ctx=context, n_batch=context, logits_all=True, verbose=False, n_threads=threads,
            n_threads_batch=threads, n_gpu_layers=0,
        )  # fmt: skip

    def tokens(self, text: str) -> list[int]:
        """A text's tokens, control tokens among them read as such."""
        return list(self._model.tokenize(text.encode(), add_bos=False, special=True))

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """(T, V) logits after each of a sequence's tokens."""
        self._model.reset()
        self._model.eval(list(ids))
        return torch.tensor(self._model.scores[: len(ids)])

    def greedy(self, ids: Sequence[int], count: int, speed: Speed) -> list[int]:
        """The ``count`` likeliest tokens after ``ids``, one after another; their time is added to ``speed``."""
        found: list[int] = []
        with speed.timed():
            for token in self._model.generate(list(ids), temp=0.0):
                found.append(int(token))
                if len(found) == count:
                    break
        speed.tokens += len(found)
        return found


def compare_with_llama_cpp(policy: Any, tokenizer: Any, path: Path, rows: Sequence[Row], speed: Speed) -> Agreement:
    """The agreement of a policy with a GGUF file in llama.cpp on the first of ``rows``.

    Raises StageError where llama.cpp cuts a prompt's text into other tokens than the tokenizer does.
    """
    chosen = list(rows)[:ROWS]
    reader = LlamaCpp(path, max(len(prompt) + len(answer) for prompt, answer in chosen) + 1)
    found = Agreement()
    for prompt, answer in chosen:
        text = tokenizer.decode(list(prompt), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if (read := reader.tokens(text)) != list(prompt):
            place = next(
                (i for i, (a, b) in enumerate(zip(read, prompt, strict=False)) if a != b), min(len(read), len(prompt))
            )
            raise StageError(f"llama.cpp reads the text {text[:60]!r} as other tokens, from number {place} on")
        [own] = answer_logits(policy, [(prompt, answer)])
        whole = reader.logits([*prompt, *answer])
        found.add(own.cpu(), whole[len(prompt) - 1 : -1], answer)
        reader.greedy(prompt, len(answer), speed)
    return found

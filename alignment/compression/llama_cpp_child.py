"""llama.cpp in a process of its own, run as a program, so that what it does to a process is told and not suffered.

Tokens are read one at a time: products of many tokens by AMX tiles were seen to crash on a virtual machine.

It is given a job as JSON: ``path``, ``texts``, ``rows`` of a prompt's and its answer's tokens, ``threads``, ``output``.
It writes into the folder ``output`` the tokens that it cuts each text into, its seconds for greedy answers as long as
the given ones, and for each row its logits before the answer's tokens, ``row-00000.npy`` (T, V) float32.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def main(job: dict[str, Any]) -> None:
    """Does the job."""
    from llama_cpp import Llama

    rows, output = job["rows"], Path(job["output"])
    context = max(len(prompt) + len(answer) for prompt, answer in rows) + 1
    threads = job["threads"]
    model: Any = Llama(
        job["path"], n_ctx=context, n_batch=1, logits_all=True, verbose=False, n_threads=threads,
        n_threads_batch=threads, n_gpu_layers=0,
    )  # fmt: skip
    read = [list(model.tokenize(text.encode(), add_bos=False, special=True)) for text in job["texts"]]
    tokens, seconds = 0, 0.0
    for number, (prompt, answer) in enumerate(rows):
        model.reset()
        model.eval([*prompt, *answer])
        scores = np.asarray(model.scores[len(prompt) - 1 : len(prompt) + len(answer) - 1], dtype=np.float32)
        np.save(output / f"row-{number:05d}.npy", scores)
        start = time.perf_counter()
        model.reset()
        for drawn, _token in enumerate(model.generate(prompt, temp=0.0), start=1):
            if drawn == len(answer):
                break
        seconds += time.perf_counter() - start
        tokens += len(answer)
    (output / "read.json").write_text(json.dumps({"texts": read, "tokens": tokens, "seconds": seconds}), "utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text("utf-8")))

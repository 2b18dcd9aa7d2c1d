"""Weight files: which ones a model folder is loaded from, whether they are whole, and whether the numbers are finite.

What can be told from headers is told from headers: no weight is read before a stage needs it.
"""

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from alignment.data.jsonl import POINTER_BYTES, pointer_kind
from alignment.errors import Fault, NotFiniteError, StageError

SINGLE = ("model.safetensors", "pytorch_model.bin")  # what transformers looks for, in this order, each before its index
INDEX = ".index.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
GGUF_FILE = "model.gguf"  # an export of the stage `quantise`
LONGEST_HEADER = 100_000_000  # bytes; the format's own bound
_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "adapter_config.json",
)
_AGAIN = "copy or download it again"


def require_all(missing: Iterable[str], folder: str) -> None:
    """Raises StageError where weights that a model has are ``missing`` in its folder: they would be drawn at random."""
    if names := sorted(missing):
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise StageError(
            f"{folder} does not hold {names[0]}{more}, which the model needs: they would be drawn at random; "
            "give the folder of a causal language model"
        )


def weight_faults(folder: Path) -> list[Fault]:
    """What is wrong with the files of a model folder: pointers, missing shards, files cut short.

    The folder may hold whole weights or a PEFT adapter. An empty list means that the files are all there and whole.
    """
    faults = [
        Fault(f"a {kind} pointer, not the file itself", _fetch(kind), file=str(path))
        for path in (folder / name for name in _SMALL_FILES)
        if (kind := _pointer(path)) is not None
    ]
    adapter = folder / ADAPTER_WEIGHTS
    if not (folder / "config.json").exists() and adapter.exists():
        return [*faults, *_file_faults(adapter)]
    for name in (*SINGLE, GGUF_FILE):
        if (folder / name).exists():
            return [*faults, *_file_faults(folder / name)]
        if (folder / f"{name}{INDEX}").exists():
            return [*faults, *_index_faults(folder / f"{name}{INDEX}")]
    others = ", ".join(path.name for path in sorted(folder.glob("*.safetensors"))) or "no *.safetensors at all"
    problem = f"neither model.safetensors nor its index is there ({others})"
    return [*faults, Fault(problem, "copy the model's weights into it", file=str(folder))]


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a folder's safetensors files, by name, from their headers.

    Empty for weights in another format. The files must be whole: see :func:`weight_faults`.
    """
    files = [folder / SINGLE[0]] if (folder / SINGLE[0]).exists() else sorted(folder.glob("model-*.safetensors"))
    return {
        name: tuple(entry["shape"])
        for file in files
        for name, entry in read_header(file).items()
        if name != "__metadata__"
    }


def read_header(path: Path) -> dict[str, Any]:
    """A safetensors file's header: dtype, shape and offsets of each tensor. Raises ValueError where it is none."""
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8 or (length := struct.unpack("<Q", start)[0]) > LONGEST_HEADER:
            raise ValueError("it has no header")
        header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no mapping")
    end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    if (size := path.stat().st_size) != 8 + length + end:
        raise ValueError(f"it has {size:,} bytes, and its header speaks of {8 + length + end:,}")
    return header


def require_finite(tensors: Iterable[tuple[str, Any]], what: str) -> None:
    """Raises NotFiniteError where a floating-point tensor holds NaN or an infinity, naming ``what`` and the tensor.

    ``tensors`` are (name, torch.Tensor) pairs, as ``named_parameters()`` gives them.
    """
    broken = list(_not_finite(tensors))
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise NotFiniteError(
            f"{what} has weights that are not finite numbers ({broken[0]}{more}); "
            "it cannot be used: train it again with a lower learning rate, or take another model"
        )


def held_parts(tensor: Any) -> list[Any]:
    """The plain tensors that a weight is held in: itself, or integers, scales and offsets of torchao's."""
    if not type(tensor).__module__.startswith("torchao."):
        return [tensor]
    names, _context = tensor.__tensor_flatten__()
    return [part for name in names if (part := getattr(tensor, name, None)) is not None]


def _not_finite(tensors: Iterable[tuple[str, Any]]) -> Iterator[str]:
    import torch  # this module is read by checks that need no torch

    for name, tensor in tensors:
        for part in held_parts(tensor):
            if part.is_floating_point() and part.numel() and part.element_size() > 1:
                least, most = torch.aminmax(part.detach())  # either is NaN where any entry is
                if not (torch.isfinite(least) and torch.isfinite(most)):
                    yield name


def _index_faults(index: Path) -> Iterator[Fault]:
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        shards = {str(name): [key for key, file in weight_map.items() if file == name] for name in weight_map.values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        kind = _pointer(index)
        problem = f"a {kind} pointer, not the file itself" if kind else "not an index of weights"
        yield Fault(problem, _fetch(kind) if kind else _AGAIN, file=str(index))
        return
    for name, keys in sorted(shards.items()):
        shard = index.parent / name
        if not shard.is_file():
            yield Fault(f"the shard {name} is missing, and {index.name} names it", _AGAIN, file=str(shard))
            continue
        faults = list(_file_faults(shard))
        yield from faults
        if not faults and shard.suffix == ".safetensors":
            absent = sorted(set(keys) - read_header(shard).keys())
            if absent:
                problem = f"{absent[0]} is not in it, and {index.name} says it is ({len(absent)} such tensors)"
                yield Fault(problem, _AGAIN, file=str(shard))


def _file_faults(path: Path) -> Iterator[Fault]:
    kind = _pointer(path)
    if kind is not None:
        yield Fault(f"a {kind} pointer, not the weights themselves", _fetch(kind), file=str(path))
        return
    try:
        if path.suffix == ".safetensors":
            read_header(path)
        elif path.suffix == ".gguf":
            with path.open("rb") as file:
                if file.read(4) != b"GGUF":
                    raise ValueError("it does not begin as a GGUF file does")
        elif not path.stat().st_size:
            raise ValueError("it is empty")
    except OSError as error:
        yield Fault(f"cannot be read: {error.strerror}", "check its permissions", file=str(path))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else "its header cannot be read"
        yield Fault(f"not a whole weight file: {reason}", _AGAIN, file=str(path))


def _pointer(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return pointer_kind(file.read(POINTER_BYTES))
    except OSError:
        return None


def _fetch(kind: str) -> str:
    return {"Git LFS": "run `git lfs pull` there"}.get(kind, "run `git annex get` there")

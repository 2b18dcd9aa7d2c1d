"""A stage's cache key: the digest of all that decides its artifact, and of nothing else.

That is its settings, its inputs, its data files, the code that it runs and the libraries that this code computes with.
Schedules, notices, other stages' settings, comments, docstrings and who does the work are not in it.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from alignment.digests import digest_of
from alignment.durable_files import file_digest, folder_digest
from alignment.recipe.graph import trains_on_several, workers_of
from alignment.recipe.run_settings import RunSettings
from alignment.recipe.stages.spec import StageSettings
from alignment.records import Artifact

# Libraries whose version may change a result, by the name that they are imported under.
DECIDING = (
    "torch", "transformers", "trl", "peft", "accelerate", "numpy", "scipy", "sacrebleu", "rouge_score", "evalica",
    "krippendorff", "math_verify", "jsonschema", "datasketch", "datasets",
)  # fmt: skip
DISTRIBUTIONS = {"rouge_score": "rouge-score", "math_verify": "math-verify"}


def stage_key(
    name: str, settings: StageSettings, run: RunSettings, inputs: Mapping[str, Artifact], data: Mapping[str, Path]
) -> str:
    """The key under which a stage's artifact is found again: equal keys mean equal artifacts.

    Args:
        inputs: the artifacts that it reads, by the names of their stages.
        data: the files that it reads, by what they are called.
    """
    resources = run.resources
    several = trains_on_several(resources, settings)
    template = run.model.chat_template
    return digest_of(
        {
            "name": name,
            "settings": settings.counted(),
            "seed": run.seed,
            "held_out": run.held_out,
            "model": [run.model.dtype, resources.device, resources.threads],
            **({"quantise": run.model.quantise} if run.model.quantise else {}),
            # Sums depend on these two; where the workers are does not count.
            **({"workers": workers_of(resources, settings)} if several else {}),
            **({"sharding": resources.sharding} if several and resources.sharding != "none" else {}),
            **({} if resources.deterministic else {"deterministic": False}),
            **({"vllm": True} if resources.vllm and settings.spec.samples else {}),
            "template": file_digest(Path(template)) if template else None,
            "inputs": {source: artifact.digest for source, artifact in inputs.items()},
            "data": {what: data_digest(path) for what, path in data.items()},
            "code": code_digest(settings.spec.run),
        }
    )


def data_digest(path: Path) -> str:
    """The digest of a data file, of a folder, or of a user's module with the local modules that it imports."""
    if path.is_dir():
        return folder_digest(path)
    if path.suffix == ".py":
        return digest_of(sorted(file_digest(source) for source in local_sources(path)))
    return file_digest(path)


@cache
def code_digest(module: str) -> str:
    """SHA-256 over a module of ours, all of ours that it imports in turn, and the versions of the libraries used."""
    modules = code_modules(module)
    used = {library for _digest, libraries in modules.values() for library in libraries}
    versions = {library: importlib.metadata.version(DISTRIBUTIONS.get(library, library)) for library in sorted(used)}
    return digest_of({"code": {name: digest for name, (digest, _libraries) in modules.items()}, "versions": versions})


@cache
def code_modules(module: str) -> dict[str, tuple[str, frozenset[str]]]:
    """The modules of ours that one runs, itself among them: the digest of each one's syntax tree, and the deciding
    libraries that it imports. Comments, formatting and strings that only document do not count."""
    modules: dict[str, tuple[str, frozenset[str]]] = {}
    queue = [module]
    while queue:
        name = queue.pop()
        if name in modules or (path := _source(name)) is None:
            continue
        digest, imports = _file(path)
        modules[name] = digest, frozenset(imported.split(".")[0] for imported in imports) & frozenset(DECIDING)
        queue.extend(imported for imported in imports if imported.split(".")[0] == "alignment")
    return modules


@cache
def _file(path: Path) -> tuple[str, tuple[str, ...]]:
    """The digest of a file's code, and what it imports. Read once: most stages stand on the same files."""
    tree = ast.parse(path.read_text("utf-8"))
    imports = tuple(_imports(tree))
    return hashlib.sha256(ast.dump(_without_documentation(tree)).encode()).hexdigest(), imports


@cache
def _source(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin) if spec and spec.origin else None


def _imports(tree: ast.Module) -> Iterator[str]:
    """The modules that a file imports, wherever in the file; ``from package import module`` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            if node.module.split(".")[0] == "alignment":
                names = (alias.name for alias in node.names if _is_module(node.module, alias.name))
                yield from (f"{node.module}.{name}" for name in names)


@cache
def _is_module(package: str, name: str) -> bool:
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return any((Path(folder) / f"{name}.py").exists() or (Path(folder) / name).is_dir() for folder in folders or ())


def _without_documentation(tree: ast.Module) -> ast.Module:
    """The tree without strings that stand as statements: docstrings of modules, classes, functions and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [statement for statement in node.body if not _is_text(statement)] or [ast.Pass()]
    return tree


def _is_text(statement: ast.stmt) -> bool:
    is_constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return is_constant and isinstance(statement.value.value, str)  # type: ignore[attr-defined]  # as was just seen


def local_sources(path: Path) -> set[Path]:
    """The source of a user's module, and of every module that it imports in turn and that is no installed library's.

    Looked for are modules beside the first one and beside the one that imports them, and those that Python finds
    outside of the installed libraries. What a module reads while it runs, such as word lists, is not seen.
    """
    root, sources = path.resolve().parent, set[Path]()
    queue = [path.resolve()]
    while queue:
        source = queue.pop()
        if source in sources or not source.is_file():
            continue
        sources.add(source)
        try:
            tree = ast.parse(source.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # the check says so; its bytes count as they are
        for module, level in _named(tree):
            folders = [source.parents[level - 1]] if level else [root, source.parent]
            queue += [found for folder in folders for found in _beside(module, folder)]
            if level == 0:
                queue += _importable(module)
    return sources


def _named(tree: ast.Module) -> Iterator[tuple[tuple[str, ...], int]]:
    """The parts of every module's name that a file may import, and how many packages up it begins (0: at the top)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((tuple(alias.name.split(".")), 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = tuple(part for part in (node.module or "").split(".") if part)
            yield from (((*package, alias.name), node.level) for alias in node.names)


def _beside(parts: tuple[str, ...], folder: Path) -> list[Path]:
    """The files below ``folder`` that importing a module runs: its own, and those of the packages that it is in."""
    steps = [folder.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    candidates = [file for step in steps for file in (step.with_suffix(".py"), step / "__init__.py")]
    return [file.resolve() for file in candidates if file.is_file()]


def _importable(parts: tuple[str, ...]) -> list[Path]:
    """The same for a module that Python finds by its name, unless it is an installed library's."""
    files: list[Path] = []
    if parts[0] in sys.stdlib_module_names:
        return files
    for depth in range(1, len(parts) + 1):
        try:
            spec = importlib.util.find_spec(".".join(parts[:depth]))
        except (ImportError, ValueError, AttributeError):
            break
        if spec is None or spec.origin is None or not spec.has_location or _is_installed(Path(spec.origin)):
            break
        files.append(Path(spec.origin).resolve())
    return files


def _is_installed(path: Path) -> bool:
    places = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(path.resolve().is_relative_to(place) for place in places)

"""TODO: alignment/cache_key.py"""

import ast
import hashlib
import importlib.metadata
import importlib.util
from functools import cache
from pathlib import Path

from alignment.digests import digest_of

LIBRARIES = ("torch", "transformers", "trl", "peft")  # whose versions change what training computes


@cache
def code_digest(module: str) -> str:
    """SHA-256 over a module of ours, everything of ours that it imports in turn, and the libraries' versions.

    Comments and formatting do not count: what is digested is each file's syntax tree.
    """
    seen: dict[str, str] = {}
    queue = [module]
    while queue:
        name = queue.pop()
        if name in seen or (path := _source(name)) is None:
            continue
        seen[name], imports = _file(path)
        queue.extend(imports)
    versions = {library: importlib.metadata.version(library) for library in LIBRARIES}
    return digest_of({"code": seen, "versions": versions})


@cache
def _file(path: Path) -> tuple[str, list[str]]:
    """The digest of a file's code, and what of ours it imports. Read once: most stages stand on the same files."""
    tree = ast.parse(path.read_text("utf-8"))
    return hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest(), _imports(tree)


@cache
def _source(name: str) -> Path | None:
    spec = importlib.util.find_spec(name) if name.split(".")[0] == "alignment" else None
    return Path(spec.origin) if spec and spec.origin else None


def _imports(tree: ast.Module) -> list[str]:
    """The modules of ours that a file imports, wherever in the file; ``from package import module`` included."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.append(node.module)
            if node.module.split(".")[0] == "alignment":
                names += [f"{node.module}.{alias.name}" for alias in node.names if _is_module(node.module, alias.name)]
    return [name for name in names if name.split(".")[0] == "alignment"]


@cache
def _is_module(package: str, name: str) -> bool:
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return any((Path(folder) / f"{name}.py").exists() or (Path(folder) / name).is_dir() for folder in folders or ())


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return tree

"""A version's files as they may leave this machine: nothing in them names a place here, or holds a secret.

The files are copied, places in them shortened to their last part, and their digests in ``lineage.json`` made anew; the
digest under which the version is registered stands there as ``registered_lineage_sha256``. Then every byte is looked
through once more, for this machine's folders and for the values of its secret variables.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.durable_files import WRITE_BITS, write_text
from alignment.errors import StageError
from alignment.registry.card import EMBEDDED
from alignment.registry.files import ADAPTER_FILE, CARD_FILE, LINEAGE_FILE, model_files, require_whole
from alignment.registry.records import RegisteredVersion
from alignment.workspace import Workspace

MERGED = "merged"
_SETTINGS = {LINEAGE_FILE, ADAPTER_FILE, "base.json", "config.json", "generation_config.json", "tokenizer_config.json"}
_PLACE = re.compile(r"(?<![\w:/.<>*\\-])/(?:[^\s/`\"'<>|()\[\]]+/)+[^\s/`\"'<>|()\[\],;:]+/?")
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_LEAST_SECRET = 12  # characters: a shorter value stands in any text by chance
_CHUNK = 2**24
MERGED_WORDS = f"\nThe whole weights, adapter merged, are in `{MERGED}/`.\n"


@dataclass(frozen=True, slots=True)
class Publication:
    """Files ready to leave: bytes by relative name, and what stays behind, with why."""

    folder: Path
    files: Mapping[str, int]
    left_out: Mapping[str, str]


def prepare(
    workspace: Workspace, version: RegisteredVersion, target: Path, merge: Callable[[Path], None] | None
) -> Publication:
    """Copies a version's files into the new folder ``target``.

    ``merge`` writes whole weights into a folder; None leaves them out, also where the version has them.

    Raises:
        InputError: the version is no longer what was registered.
        StageError: something of this machine would leave it.
    """
    source = Path(version.folder)
    require_whole(source, version.lineage_sha256)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*([] if merge else [MERGED])))
    for path in target.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode | (WRITE_BITS & 0o200))
    left_out = {}
    if merge is None and (source / MERGED).is_dir():
        left_out[f"{MERGED}/"] = "whole weights, which --merged takes along"
    if merge is not None and not (target / MERGED).is_dir():
        merge(target / MERGED)
        card = target / CARD_FILE
        write_text(card, card.read_text("utf-8").rstrip("\n") + "\n" + MERGED_WORDS)
    _clean(target)
    _renew_lineage(target, version)
    _look_through(target, _words_of_this_machine(workspace))
    sizes = {path.relative_to(target).as_posix(): path.stat().st_size for path in _files(target)}
    return Publication(target, sizes, left_out)


def without_places(text: str) -> str:
    """A text whose absolute paths are shortened to their last part; addresses of the web stay as they are."""
    return _PLACE.sub(lambda found: Path(found[0]).name, text)


def _clean(folder: Path) -> None:
    for path in _files(folder):
        if path.name == CARD_FILE:
            write_text(path, without_places(path.read_text("utf-8")))
        elif path.name in _SETTINGS:
            values = json.loads(path.read_text("utf-8"))
            cleaned = _cleaned(values)
            if path.name == ADAPTER_FILE:
                cleaned["base_model_name_or_path"] = _public_base(folder, cleaned["base_model_name_or_path"])
            if cleaned != values:
                write_text(path, json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n")


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return without_places(value)
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if isinstance(value, dict):
        return {key: _cleaned(item) for key, item in value.items()}
    return value


def _public_base(folder: Path, named: str) -> str:
    """The name under which others find an adapter's base: an embedded model's is its hub's."""
    record = folder / "base.json"
    made_on = json.loads(record.read_text("utf-8")).get("base") if record.exists() else None
    return EMBEDDED[made_on][0] if made_on in EMBEDDED else named


def _renew_lineage(folder: Path, version: RegisteredVersion) -> None:
    path = folder / LINEAGE_FILE
    record = json.loads(path.read_text("utf-8"))
    record |= {"files": model_files(folder), "registered_lineage_sha256": version.lineage_sha256}
    write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _words_of_this_machine(workspace: Workspace) -> dict[bytes, str]:
    """What must not leave: this machine's folders, and the values of variables that are named as secrets are."""
    places = {workspace.root, workspace.root.resolve(), Path.cwd(), Path.home()} - {Path("/")}
    words = {f"{place}/".encode(): "a folder of this machine" for place in places}
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _LEAST_SECRET and not value.startswith(("/", "http")):
            words[value.encode()] = f"the value of {name}"
    return words


def _look_through(folder: Path, words: Mapping[bytes, str]) -> None:
    """Raises StageError where a file holds one of ``words``."""
    longest = max(map(len, words))
    for path in _files(folder):
        before = b""
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                held = before + chunk
                for word, what in words.items():
                    if word in held:
                        raise StageError(f"nothing was pushed: {path.relative_to(folder)} holds {what}")
                before = held[-longest:]


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())

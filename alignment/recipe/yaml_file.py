"""YAML as a person means it: ``1e-5`` is a number, a key stands once, and every value knows its line.

PyYAML follows YAML 1.1, which reads ``1e-5`` as text (its floats need a dot and a signed exponent) and lets the last of
two equal keys win; in a file of learning rates both are traps.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from alignment.errors import Fault, InputError

Location = tuple[str | int, ...]

_FLOAT = re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Safe, and reads every number in scientific notation."""


class _Dumper(yaml.SafeDumper):
    """Quotes the text that :class:`_Loader` would read as a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Text with one of Unicode's own line breaks goes into double quotes, where it is escaped: PyYAML's other styles
    write it as it is, and fold it into a space on reading."""
    style = '"' if re.search("[\x85\u2028\u2029\ufeff]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)


@dataclass(slots=True)
class Document:
    """A parsed file: its value, and the line of every key and item by its location."""

    value: Any
    lines: dict[Location, int] = field(default_factory=dict)

    def line(self, location: Location) -> int | None:
        """The line of the value at ``location``, or of the nearest one around it."""
        for end in range(len(location), -1, -1):
            if location[:end] in self.lines:
                return self.lines[location[:end]]
        return None


def parse(text: str, file: str | None = None) -> Document:
    """Raises InputError where the text is not YAML, or has a key twice, a key that is not text, or a loop."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        document = Document(None)
        faults: list[Fault] = []
        if node is not None:
            _walk(node, (), document.lines, faults, file, set())
        if not faults and node is not None:
            document.value = _own(loader.construct_document(node))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        problem = f"not YAML: {error.problem or error.context}"
        row = mark.line + 1 if mark else None
        raise InputError([Fault(problem, "mend the line", file, row)]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a character or a number that YAML cannot hold
        reason = str(error).splitlines()[0] if str(error) else "nested too deeply"
        raise InputError([Fault(f"not YAML: {reason}", "mend the file", file)]) from None
    if faults:
        raise InputError(faults)
    return document


def dump(value: Any) -> str:
    """YAML in the order given, which :func:`parse` reads back equal."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _walk(
    node: yaml.Node,
    at: Location,
    lines: dict[Location, int],
    faults: list[Fault],
    file: str | None,
    above: set[int],
) -> None:
    """Notes the line of everything below ``node``, and what is wrong with its keys."""
    lines.setdefault(at, node.start_mark.line + 1)
    if id(node) in above:
        faults.append(Fault("the value contains itself", "write it out", file, node.start_mark.line + 1, _dotted(at)))
        return
    above = above | {id(node)}
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, (*at, index), lines, faults, file, above)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag == _MERGE:
            continue
        if key.tag != "tag:yaml.org,2002:str":
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            faults.append(Fault(f"the key {name} is not text", "put it in quotes", file, line, _dotted(at)))
            continue
        here = (*at, key.value)
        if key.value in seen:
            problem = f"the key stands twice, first in row {seen[key.value]}"
            faults.append(Fault(problem, "keep one of them", file, line, _dotted(here)))
        else:
            seen[key.value] = lines[here] = line
            _walk(value, here, lines, faults, file, above)


def _own(value: Any) -> Any:
    """A copy in which an anchor's aliases are values of their own: setting one must not change the others."""
    if isinstance(value, dict):
        return {key: _own(inner) for key, inner in value.items()}
    return [_own(inner) for inner in value] if isinstance(value, list) else value


def _dotted(location: Location) -> str | None:
    return ".".join(str(part) for part in location) or None

"""The variants of a sweep: every combination of the values that settings are given by ``--over``."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from alignment.errors import Fault, InputError
from alignment.recipe import yaml_file

OPTION = "--over"
EXAMPLE = f"write {OPTION} stages.dpo.beta=0.05,0.1,0.3"


@dataclass(frozen=True, slots=True)
class Axis:
    """A setting by its dotted name, and the values that it takes."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Variant:
    """One combination: a value for each setting of the sweep, in the order of the axes."""

    settings: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        """How it is called: its settings by the ends of their names."""
        keys = [key for key, _value in self.settings]
        return ", ".join(f"{short_key(key, keys)}={value_text(value)}" for key, value in self.settings)

    @property
    def overrides(self) -> list[str]:
        """The same as ``--set`` takes them."""
        return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in self.settings]


def short_key(key: str, keys: Sequence[str]) -> str:
    """The fewest last parts of a setting's dotted name that no other key ends in."""
    parts = key.split(".")
    for length in range(1, len(parts)):
        end = parts[-length:]
        if sum(other.split(".")[-length:] == end for other in keys) < 2:
            return ".".join(end)
    return key


def value_text(value: Any) -> str:
    """A value as a person writes it: text as it is, all else as YAML in one line."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def read_axes(given: Sequence[str]) -> list[Axis]:
    """The axes that ``--over KEY=V1,V2,…`` gives, one each.

    What stands after the ``=`` is what stands between the brackets of a YAML list: ``0.05,0.1``, and a value that is a
    list or has a comma itself is written ``[a, b]`` or ``"a, b"``. Raises InputError with every fault.
    """
    axes, faults = list[Axis](), list[Fault]()
    for one in given:
        try:
            axis = _axis(one)
        except InputError as error:
            faults += error.faults
            continue
        if any(axis.key == other.key for other in axes):
            faults.append(Fault("the setting is given twice", f"give all of its values in one {OPTION}", OPTION,
                                field=axis.key))  # fmt: skip
        axes.append(axis)
    if not given:
        faults.append(Fault("nothing to compare", EXAMPLE, OPTION))
    if faults:
        raise InputError(faults)
    return axes


def _axis(given: str) -> Axis:
    key, equals, text = given.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise InputError([Fault(f"{given!r} is not KEY=VALUE,VALUE", EXAMPLE, OPTION)])
    try:
        values = yaml_file.parse(f"[{text}]").value
    except InputError as error:
        problem = f"{text!r} is no list of values: {error.faults[0].problem.removeprefix('not YAML: ')}"
        remedy = "separate them by commas, and put in quotes or brackets what has commas itself"
        raise InputError([Fault(problem, remedy, OPTION, field=key)]) from None
    if not isinstance(values, list) or not values:
        raise InputError([Fault("no values", EXAMPLE, OPTION, field=key)])
    if len(values) == 1:
        remedy = f"give another one, or write --set {key}={value_text(values[0])}"
        raise InputError([Fault("one value alone compares with nothing", remedy, OPTION, field=key)])
    seen = [value_text(value) for value in values]
    if twice := [value for place, value in enumerate(values) if seen[place] in seen[:place]]:
        raise InputError([Fault(f"{value_text(twice[0])} stands twice", "remove one", OPTION, field=key)])
    return Axis(key, tuple(values))


def variants_of(axes: Sequence[Axis]) -> list[Variant]:
    """Every combination, the last axis changing fastest."""
    keys = [axis.key for axis in axes]
    return [Variant(tuple(zip(keys, values, strict=True))) for values in product(*(axis.values for axis in axes))]

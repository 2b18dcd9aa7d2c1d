"""Writes docs/reference/: every recipe setting, from the JSON Schema. `make reference` runs it."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from alignment.checks.schema import recipe_schema

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
NOTE = "<!-- Written by scripts/write_reference.py from the settings' docstrings: `make reference`. -->\n"
BOUNDS = {
    "minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}",
    "minItems": "at least {} items", "maxItems": "at most {} items", "minProperties": "at least {}",
    "maxProperties": "at most {}", "minLength": "at least {} characters", "maxLength": "at most {} characters",
}  # fmt: skip
UNIONS = {"stages": "Stage", "judges": "Judge", "rewards": "Reward", "metrics": "Metric"}


class Reference:
    """The pages of a schema."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema, self.definitions = schema, schema["$defs"]
        self.page_of = {name: page for page, suffix in UNIONS.items() for name in self._members(suffix)}
        self.page_of |= {name: self._page_of_part(name) for name in self.definitions if name not in self.page_of}

    def pages(self) -> dict[str, str]:
        """The text of each page by its file's name."""
        texts = {
            "recipe": self._page(
                "Recipe", ["Recipe", *self._on("recipe")], "The top of a recipe and what all stages share."
            )
        }
        texts["stages"] = self._page("Stages", self._on("stages"), "One section a kind of stage, by `kind`.")
        texts["judges"] = self._page("Judges", self._on("judges"), "`judge:` of a stage or a reward, by `kind`.")
        texts["rewards"] = self._page("Rewards", self._on("rewards"), "Members of `rewards:`, by `kind`.")
        texts["metrics"] = self._page(
            "Metrics", self._on("metrics"), "Members of `metrics:` of an evaluation, by `kind`."
        )
        return {f"{name}.md": text for name, text in texts.items()}

    def _members(self, suffix: str) -> list[str]:
        """The definitions that are told apart by ``kind`` and stand in one union."""
        users = {
            "Stage": self.schema["properties"]["stages"],
            "Judge": self.definitions["JudgeStage"]["properties"]["judge"],
            "Reward": self.definitions["EvaluateStage"]["properties"]["rewards"],
            "Metric": self.definitions["EvaluateStage"]["properties"]["metrics"],
        }
        return [name for name in references(users[suffix]) if "kind" in self.definitions[name]["properties"]]

    def _page_of_part(self, name: str) -> str:
        """Where settings stand that are part of others: on the page of those that alone name them, else "recipe"."""
        users = {other for other, found in self.definitions.items() if name in references(found)}
        pages = {self.page_of.get(user) or self._page_of_part(user) for user in users - {name}}
        pages |= {"recipe"} if name in references(self.schema["properties"]) else set()
        return pages.pop() if len(pages) == 1 else "recipe"

    def _on(self, page: str) -> list[str]:
        """The definitions of a page: kinds in the order of their union, then what they are made of."""
        kinds = [name for name in self._members(UNIONS[page]) if self.page_of[name] == page] if page in UNIONS else []
        return kinds + sorted(name for name, place in self.page_of.items() if place == page and name not in kinds)

    def _page(self, title: str, names: Iterable[str], summary: str) -> str:
        sections = [self._section(name) for name in names]
        return f"{NOTE}\n# {title}\n\n{summary}\n\n" + "\n".join(sections)

    def _section(self, name: str) -> str:
        definition = self.schema if name == "Recipe" else self.definitions[name]
        properties = definition["properties"]
        kind = properties.get("kind", {}).get("const")
        heading = f"## `{kind}` {{ #{name} }}" if kind else f"## {name} {{ #{name} }}"
        rows = [
            f"| `{field}` | {self._type(entry)} | {self._default(field, definition)} | {cell(entry['description'])} |"
            for field, entry in properties.items()
            if field != "kind" or not kind
        ]
        table = ["| setting | values | default | |", "|---|---|---|---|", *rows]
        text = definition.get("description", "").replace("``", "`")
        return "\n".join([heading, "", text, "", *(table if rows else ["No settings of its own."]), ""])

    def _default(self, field: str, definition: dict[str, Any]) -> str:
        if field in definition.get("required", ()):
            return "required"
        value = definition["properties"][field].get("default")
        if isinstance(value, dict):
            (name,) = references(definition["properties"][field]) or ("",)
            own = {
                key: entry.get("default") for key, entry in self.definitions.get(name, {}).get("properties", {}).items()
            }
            value = {key: inner for key, inner in value.items() if key not in own or own[key] != inner}
            if name and not value:
                return "its defaults"
        return cell(f"`{json.dumps(value, ensure_ascii=False)}`")

    def _type(self, entry: dict[str, Any]) -> str:
        return cell(self._said(entry))

    def _said(self, entry: dict[str, Any]) -> str:
        if "$ref" in entry:
            name = entry["$ref"].rpartition("/")[2]
            return f"[{name}]({self.page_of[name]}.md#{name})"
        named = references(entry) if "oneOf" in entry else []
        page = self.page_of[named[0]] if named else ""
        if named and named[0] in self._members(UNIONS.get(page, "Stage")):
            return f"one of [{page}]({page}.md)"
        if named:
            return " or ".join(f"[{name}]({self.page_of[name]}.md#{name})" for name in dict.fromkeys(named))
        if alternatives := entry.get("anyOf", entry.get("oneOf")):
            kinds = dict.fromkeys(self._said(one) for one in alternatives)
            return " or ".join(kinds)
        if "enum" in entry or "const" in entry:
            return ", ".join(f"`{json.dumps(one)}`" for one in entry.get("enum", [entry.get("const")]))
        bounds = ", ".join(text.format(plain(entry[bound])) for bound, text in BOUNDS.items() if bound in entry)
        kind = {"string": "text", "integer": "whole number", "boolean": "`true`, `false`", "null": "`null`"}.get(
            entry.get("type", ""), entry.get("type", "any value")
        )
        if entry.get("type") == "array":
            items = entry["items"] if "items" in entry else {"anyOf": entry["prefixItems"]}
            kind = f"list of {self._said(items)}"
            bounds = bounds if "items" in entry else f"{len(entry['prefixItems'])} items"
        elif entry.get("type") == "object":
            inner = entry.get("additionalProperties", next(iter(entry.get("patternProperties", {}).values()), True))
            kind = f"mapping to {self._said(inner) if isinstance(inner, dict) else 'any value'}"
        return f"{kind}, {bounds}" if bounds else kind


def references(value: Any) -> list[str]:
    """The definitions that a part of the schema names, in their order, each once."""
    found = list(_references(value))
    return list(dict.fromkeys(found))


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"].rpartition("/")[2]
        for name, inner in value.items():
            if name not in ("discriminator", "default"):
                yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def cell(text: str) -> str:
    """A text as a table's cell."""
    return " ".join(text.replace("|", "\\|").split())


def plain(number: float) -> str:
    """A number as a person writes it."""
    return f"{number:g}" if isinstance(number, float) else str(number)


def main() -> None:
    """Writes the pages."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in Reference(recipe_schema()).pages().items():
        (FOLDER / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()

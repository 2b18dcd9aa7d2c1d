"""The app speaks four languages: no catalogue lacks a sentence, has one too many, or loses what is filled in."""

import ast
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from preference_ui.store.settings import DeskSettings
from preference_ui.web.languages import LANGUAGES, language_of, translate

APP = Path(str(files("preference_ui")))
WORDS = APP / "static" / "words"
TRANSLATED = [language for language in LANGUAGES if language != "en"]
FOR_RATERS = [path for path in (APP / "static").glob("*.js") if path.name not in ("admin.js", "words.js")]
HEARD = ("labelling/*.py", "accounts/*.py", "arena/*.py", "web/rater_page.py", "web/arena_page.py", "web/auth_pages.py",
         "web/middleware.py")  # fmt: skip
TOLD_TO_PROGRAMS = ("tokens.py",)  # and in the shell: in English
NAMED = ("MALFORMED", "UNAVAILABLE", "WELCOME", "TITLES", "INVITED", "sentence")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


def _calls(source: str) -> Iterator[str]:
    """The first argument of every call of ``t``."""
    for found in re.finditer(r"(?<![\w.])t\(", source):
        depth, at = 1, found.end()
        in_string = False
        while depth and not (depth == 1 and source[at] == "," and not in_string):
            character = source[at]
            if character == "\\" and in_string:
                at += 1
            elif character == '"':
                in_string = not in_string
            elif not in_string:
                depth += (character == "(") - (character == ")")
            at += 1
        yield source[found.end() : at]


def _in_scripts() -> set[str]:
    return {
        json.loads(f'"{one}"')
        for path in FOR_RATERS
        for argument in _calls(path.read_text("utf-8"))
        for one in _STRING.findall(argument)
    }


def _in_python() -> set[str]:
    """What handlers answer: sentences of refusals, and those under ``say``."""
    found = set()
    for path in (path for folder in HEARD for path in sorted(APP.glob(folder)) if path.name not in TOLD_TO_PROGRAMS):
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Refusal", "_sentence"):
                found |= {one.value for one in node.args if isinstance(one, ast.Constant) and " " in str(one.value)}
            if isinstance(node, ast.Dict):
                keys = zip(node.keys, node.values, strict=True)
                found |= {
                    value.value
                    for key, value in keys
                    if isinstance(key, ast.Constant) and key.value == "say" and isinstance(value, ast.Constant)
                }
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in NAMED:
                values = node.value.values if isinstance(node.value, ast.Dict) else [node.value]
                found |= {value.value for value in values if isinstance(value, ast.Constant)}
    return found


def _in_templates() -> set[str]:
    source = (APP / "templates" / "door.html").read_text("utf-8")
    return set(re.findall(r'_\("([^"]*)"\)', source))


def _wanted() -> set[str]:
    criteria = {one.rubric for one in DeskSettings().criteria} | {one.name for one in DeskSettings().criteria}
    return _in_scripts() | _in_python() | _in_templates() | criteria


def test_the_search_finds_what_is_said() -> None:
    assert {
        "Send",
        "Undo",
        "Answer {letter} is tied with answer {other}",
        "Answer {letter} is below answer {other}",
    } <= _in_scripts()
    assert "There is no vote to undo yet." in _in_python()
    assert "Name" in _in_templates()


@pytest.mark.parametrize("language", TRANSLATED)
def test_no_catalogue_lacks_a_sentence(language: str) -> None:
    catalogue = json.loads((WORDS / f"{language}.json").read_text("utf-8"))
    assert sorted(_wanted() - set(catalogue)) == []
    assert [key for key, text in catalogue.items() if not text.strip()] == []


@pytest.mark.parametrize("language", TRANSLATED)
def test_what_is_filled_in_is_filled_in_everywhere(language: str) -> None:
    catalogue = json.loads((WORDS / f"{language}.json").read_text("utf-8"))
    holes = re.compile(r"\{\w+\}")
    assert [key for key, text in catalogue.items() if sorted(holes.findall(key)) != sorted(holes.findall(text))] == []


def test_the_catalogues_have_the_same_sentences() -> None:
    keys = {language: set(json.loads((WORDS / f"{language}.json").read_text("utf-8"))) for language in TRANSLATED}
    assert keys["de"] == keys["es"] == keys["ar"]


def test_every_language_that_the_page_offers_is_known_to_the_server() -> None:
    offered = re.search(r"LANGUAGES = \{([^}]*)\}", (APP / "static" / "words.js").read_text("utf-8"))
    assert offered is not None
    assert re.findall(r"(\w+):", offered[1]) == list(LANGUAGES)


@pytest.mark.parametrize(
    ("cookie", "header", "wanted"),
    [
        (None, "de-CH,de;q=0.9,en;q=0.5", "de"),
        (None, "fr,ar;q=0.4", "ar"),
        (None, "en;q=0.3, es;q=0.8", "es"),
        (None, "", "en"),
        (None, "fr, *;q=0.5", "en"),
        ("ar", "de", "ar"),
        ("xx", "de", "de"),
        (None, "de;q=0, es;q=0.1", "es"),
        (None, "de;q=oops", "en"),
    ],
)
def test_the_browser_says_which_language(cookie: str | None, header: str, wanted: str) -> None:
    assert language_of(cookie, header) == wanted


def test_guidelines_that_nobody_changed_are_in_the_readers_language() -> None:
    shipped = DeskSettings().guidelines
    for language in TRANSLATED:
        text = translate(language, shipped)
        assert text != shipped
        assert text.count("\n1. ") == shipped.count("\n1. ") == 1
        assert text.count("**") == shipped.count("**")
    assert translate("de", "Our own guidelines.") == "Our own guidelines."

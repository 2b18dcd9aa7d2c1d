"""The app's own words in the reader's language. English is the key, and what has no translation stays English.

The catalogues are the JSON files that the browser reads too (``static/words/LANGUAGE.json``).
"""

import json
from functools import cache
from importlib.resources import files

from preference_ui.store.settings import GUIDELINES

LANGUAGES = {"en": "English", "de": "Deutsch", "es": "Español", "ar": "العربية"}
RIGHT_TO_LEFT = ("ar",)
COOKIE = "rlhf_language"  # what the reader chose on the page


def language_of(cookie: str | None, accepted: str) -> str:
    """The language for a reader who chose ``cookie``, else by the header Accept-Language (RFC 9110, 12.5.4)."""
    if cookie in LANGUAGES:
        return cookie
    wanted = [_weighed(part) for part in accepted.split(",")[:50]]
    best = max(wanted, key=lambda one: one[0])  # the first of several that weigh the same
    return best[1] if best[0] > 0 else "en"


def _weighed(part: str) -> tuple[float, str]:
    name, _, parameter = part.strip().partition(";")
    language = name.strip()[:2].lower()
    if language not in LANGUAGES:
        return 0.0, "en"
    quality = parameter.strip().removeprefix("q=")
    try:
        return (float(quality) if parameter else 1.0), language
    except ValueError:
        return 0.0, "en"


def translate(language: str, text: str) -> str:
    """A text of the app's in a language."""
    if text == GUIDELINES and language in LANGUAGES and language != "en":
        return _guidelines(language)
    return _catalogue(language).get(text, text)


@cache
def _guidelines(language: str) -> str:
    """The guidelines that the app comes with: too long for a line of a catalogue."""
    return files("preference_ui").joinpath(f"static/words/guidelines.{language}.md").read_text("utf-8")


@cache
def _catalogue(language: str) -> dict[str, str]:
    if language == "en" or language not in LANGUAGES:
        return {}
    source = files("preference_ui").joinpath(f"static/words/{language}.json").read_text("utf-8")
    catalogue: dict[str, str] = json.loads(source)
    return catalogue

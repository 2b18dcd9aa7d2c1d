"""A text from a model, or from anybody, as HTML that is safe to show: Markdown, code, and LaTeX as MathML.

Raw HTML is shown as the text that it is. What is rendered goes through an allow-list once more, so that a fault in one
of the renderers is not a hole. Pictures are not loaded: a picture's address can tell its owner who is reading.
"""

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from html import escape, unescape
from io import StringIO
from typing import Any
from unicodedata import bidirectional
from urllib.parse import unquote

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from preference_ui.web.formulas import block_math, inline_math, to_mathml

_log = logging.getLogger(__name__)

_MATHML = {
    "math", "mrow", "mi", "mo", "mn", "ms", "mtext", "mspace", "mfrac", "msqrt", "mroot", "msub", "msup", "msubsup",
    "munder", "mover", "munderover", "mtable", "mtr", "mtd", "mstyle", "mpadded", "mphantom", "menclose", "semantics",
}  # fmt: skip
_TEXT = {
    "p", "br", "hr", "em", "strong", "s", "del", "code", "pre", "ul", "ol", "li", "blockquote", "h1", "h2", "h3", "h4",
    "h5", "h6", "table", "thead", "tbody", "tr", "th", "td", "a", "span", "div",
}  # fmt: skip
_ATTRIBUTES = {
    "a": {"href", "title"},
    "span": {"class"},
    "div": {"class"},
    "code": {"class"},
    "ol": {"start", "dir"},
    "ul": {"dir"},
    "blockquote": {"dir"},
    "li": {"value", "dir"},
    "th": {"style"},
    "td": {"style"},
    "math": {"display", "tabindex"},
    "mi": {"mathvariant"},
    "mo": {"stretchy", "fence", "form", "lspace", "rspace", "minsize", "maxsize", "separator", "movablelimits"},
    "mspace": {"width"},
    "mstyle": {"displaystyle", "scriptlevel"},
    "mfrac": {"linethickness"},
    "mtable": {"columnalign"},
    "mtd": {"columnalign"},
    "mover": {"accent"},
    "munder": {"accentunder"},
}
MAX_COLOURED = 10_000  # characters of a piece of code
COLOUR_SECONDS = 0.3  # for the colours of all code in one text


class _Colours(threading.local):
    """Until when the text that this thread renders may be coloured."""

    until = 0.0


_colours = _Colours()
# What may be wider than the page scrolls, and what scrolls can be reached by keyboard (WCAG 2.1.1). So do formulas that
# stand by themselves.
_SCROLLING = ("pre", "table")
# Each block stands in the direction of its own text: an Arabic list in an English answer begins on the right. Blocks of
# blocks are told theirs (:func:`_direct`): for "auto", a browser looks at no text of a block inside.
_DIRECTED = ("p", "h1", "h2", "h3", "h4", "h5", "h6", "th", "td")
_HOLDING = ("bullet_list_open", "ordered_list_open", "list_item_open", "blockquote_open")
MAX_NESTING = 100  # of lists, quotations and emphasis; text that is nested deeper would be left out


@lru_cache(maxsize=2_000)
def to_html(text: str) -> str:
    """Renders a text. The result holds no script, no style, no form, no picture, and no link but http(s) and mailto.

    A text of which the rendering would leave something out is shown as it was written instead.
    """
    _colours.until = time.monotonic() + COLOUR_SECONDS
    environment: dict[str, list[str]] = {}
    try:
        parser = _parser()
        tokens = parser.parse(text, environment)
        _direct(tokens)
        html = _clean(parser.renderer.render(tokens, parser.options, environment))
        if _says_all(text, html, environment):
            return html
    except Exception:  # whatever a strange text does to a renderer, the rater must see the text
        _log.debug("a text could not be rendered", exc_info=True)
    return _clean(f"<pre>{escape(text)}</pre>")


def _direct(tokens: Sequence[Token]) -> None:
    """Gives lists, their items and quotations the direction of their first letter that has one (Unicode UAX 9, P2)."""
    around: list[Token | None] = []  # blocks that are open; None for those that are no concern here
    for token in tokens:
        if token.nesting == 1:
            around.append(token if token.type in _HOLDING else None)
        elif token.nesting == -1:
            around.pop()
        elif token.type == "inline" and (direction := _direction(token.content)):
            for block in around:
                if block is not None and block.attrGet("dir") is None:
                    block.attrSet("dir", direction)


def _direction(text: str) -> str | None:
    strong = (bidirectional(letter) for letter in text)
    return next(("ltr" if one == "L" else "rtl" for one in strong if one in ("L", "R", "AL")), None)


def _clean(html: str) -> str:
    return nh3.clean(
        html,
        tags=_MATHML | _TEXT,
        attributes=_ATTRIBUTES,
        set_tag_attribute_values={tag: {"tabindex": "0"} for tag in _SCROLLING}
        | {tag: {"dir": "auto"} for tag in _DIRECTED},
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        filter_style_properties={"text-align"},
    )


_FORMULA = re.compile(r"<math\b.*?</math>", re.DOTALL)
_SAYING = re.compile(r'(?:href|title|value|start)="([^"]*)"')


def _says_all(text: str, html: str, environment: dict[str, list[str]]) -> bool:
    """Whether every letter and digit of a text is in its rendering: shown, or in a link's address or title.

    What the renderers take in and show in another form (formulas, the language of code, addresses of pictures) is what
    they put into ``environment``.
    """
    shown = _FORMULA.sub("", html)
    said = [*_SAYING.findall(shown), re.sub(r"<[^>]*>", "", shown), *environment.get("shown otherwise", ())]
    there = Counter(filter(str.isalnum, unquote(unescape("".join(said)))))
    return Counter(filter(str.isalnum, unquote(unescape(text)))) <= there


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    options = {"html": False, "breaks": True, "maxNesting": MAX_NESTING, "highlight": _code}
    parser = MarkdownIt("commonmark", options).enable(["table", "strikethrough"])
    parser.disable("reference")  # definitions of links are part of what was written
    parser.inline.ruler.before("escape", "math", inline_math)
    parser.block.ruler.before("fence", "math_block", block_math, {"alt": ["paragraph", "blockquote", "list"]})
    parser.add_render_rule("math", _render_math)
    parser.add_render_rule("math_block", _render_math)
    parser.add_render_rule("image", _render_image)
    parser.add_render_rule("fence", _render_fence)
    parser.add_render_rule("list_item_open", _render_item)
    return parser


def _code(code: str, language: str, _attributes: str) -> str:
    """Code in its colours; without them where it is long, or the text has had its time for them: some of the lexers
    take the square of the length."""
    if len(code) > MAX_COLOURED or time.monotonic() > _colours.until:
        return ""
    try:
        lexer = get_lexer_by_name(language or "text", stripnl=False)
    except ClassNotFound:
        return ""
    try:
        return str(_formatted(_in_time(lexer.get_tokens(code), _colours.until)))
    except TimeoutError:
        return ""


def _formatted(tokens: Iterable[tuple[Any, str]]) -> str:
    whole = StringIO()
    _formatter().format(tokens, whole)
    return whole.getvalue()


def _in_time(tokens: Iterable[tuple[Any, str]], until: float) -> Iterator[tuple[Any, str]]:
    """The tokens; raises TimeoutError once it is too late."""
    for token in tokens:
        if time.monotonic() > until:
            raise TimeoutError
        yield token


@lru_cache(maxsize=1)
def _formatter() -> Any:
    return HtmlFormatter(nowrap=True)


def _otherwise(environment: Any, source: str) -> None:
    environment.setdefault("shown otherwise", []).append(source)


def _render_math(_renderer: Any, tokens: Sequence[Token], at: int, _options: Any, env: Any) -> str:
    token = tokens[at]
    html = to_mathml(token.content, block=bool(token.meta["block"]))
    if html is None:  # the rater sees what stands there
        return (
            f"<pre>{escape(token.markup)}</pre>"
            if token.type == "math_block"
            else f"<code>{escape(token.markup)}</code>"
        )
    _otherwise(env, token.markup)
    return html.replace("<math ", '<math tabindex="0" ', 1) if token.meta["block"] else html


def _render_image(_renderer: Any, tokens: Sequence[Token], at: int, _options: Any, env: Any) -> str:
    token = tokens[at]
    _otherwise(env, f"{token.attrGet('src')} {token.attrGet('title') or ''}")
    return f"<em>[picture: {escape(token.content or 'no description')}]</em>"


def _render_fence(renderer: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    _otherwise(env, tokens[at].info)
    return str(renderer.fence(tokens, at, options, env))


def _render_item(renderer: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    """An item of a numbered list has the number that was written, whatever comes before it."""
    if tokens[at].info:
        tokens[at].attrSet("value", str(int(tokens[at].info)))
    return str(renderer.renderToken(tokens, at, options, env))

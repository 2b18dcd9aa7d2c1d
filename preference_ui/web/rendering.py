"""A text from a model, or from anybody, as HTML that is safe to show: Markdown, code, and LaTeX as MathML.

Raw HTML is shown as the text that it is. What is rendered goes through an allow-list once more, so that a fault in one
of the renderers is not a hole. Pictures are not loaded: a picture's address can tell its owner who is reading.
"""

import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from html import escape
from io import StringIO
from typing import Any

import nh3
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

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
    "ol": {"start"},
    "th": {"style"},
    "td": {"style"},
    "math": {"display", "tabindex"},
    "mi": {"mathvariant"},
    "mo": {"stretchy", "fence", "form", "lspace", "rspace", "minsize", "maxsize", "separator", "movablelimits"},
    "mspace": {"width"},
    "mstyle": {"displaystyle", "scriptlevel"},
    "mfrac": {"linethickness"},
    "mtable": {"columnalign"},
    "mover": {"accent"},
    "munder": {"accentunder"},
}
MAX_FORMULA = 2_000
MAX_COLOURED = 10_000  # characters of a piece of code
COLOUR_SECONDS = 0.3  # for the colours of all code in one text


class _Colours(threading.local):
    """Until when the text that this thread renders may be coloured."""

    until = 0.0


_colours = _Colours()
# What may be wider than the page scrolls, and what scrolls can be reached by keyboard (WCAG 2.1.1). So do formulas that
# stand by themselves.
_SCROLLING = ("pre", "table")


@lru_cache(maxsize=2_000)
def to_html(text: str) -> str:
    """Renders a text. The result holds no script, no style, no form, no picture, and no link but http(s) and mailto."""
    _colours.until = time.monotonic() + COLOUR_SECONDS
    try:
        rendered = _parser().render(text)
    except Exception:  # whatever a strange text does to a renderer, the rater must see the text
        rendered = f"<pre>{escape(text)}</pre>"
    return nh3.clean(
        rendered,
        tags=_MATHML | _TEXT,
        attributes=_ATTRIBUTES,
        set_tag_attribute_values={tag: {"tabindex": "0"} for tag in _SCROLLING},
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        filter_style_properties={"text-align"},
    )


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "highlight": _code}).enable(["table", "strikethrough"])
    parser.inline.ruler.before("escape", "math", _inline_math)
    parser.block.ruler.before("fence", "math_block", _block_math, {"alt": ["paragraph", "blockquote", "list"]})
    parser.add_render_rule("math", _render_math)
    parser.add_render_rule("math_block", _render_math)
    parser.add_render_rule("image", _render_image)
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


_INLINE = (
    re.compile(r"\$\$(?P<tex>[^$\n]+?)\$\$"),
    re.compile(r"\\\[(?P<tex>.+?)\\\]", re.DOTALL),
    re.compile(r"\\\((?P<tex>.+?)\\\)", re.DOTALL),
    re.compile(r"\$(?P<tex>[^\s$](?:[^$\n]*[^\s$\\])?)\$(?!\d)"),  # not "$5 and $6"
)


def _inline_math(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] not in "$\\":
        return False
    for at, pattern in enumerate(_INLINE):
        found = pattern.match(state.src, state.pos, min(state.posMax, state.pos + MAX_FORMULA))
        if found is not None:
            if not silent:
                token = state.push("math", "", 0)
                token.content = found["tex"]
                token.meta = {"block": at < 2}
            state.pos = found.end()
            return True
    return False


_FENCES = {"$$": "$$", "\\[": "\\]"}


def _block_math(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    first = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]].strip()
    closing = _FENCES.get(first)
    if closing is None:
        return False
    for line in range(start + 1, end):
        if state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].strip() == closing:
            if not silent:
                token = state.push("math_block", "", 0)
                token.content = state.getLines(start + 1, line, state.tShift[start], False)
                token.meta = {"block": True}
                token.map = [start, line + 1]
                state.line = line + 1
            return True
    return False


def _render_math(_renderer: Any, tokens: Sequence[Token], at: int, _options: Any, _env: Any) -> str:
    tex, block = tokens[at].content.strip(), bool(tokens[at].meta["block"])
    try:
        if len(tex) > MAX_FORMULA:
            raise ValueError("too long")
        html = str(convert(tex, display="block" if block else "inline"))
        return html.replace("<math ", '<math tabindex="0" ', 1) if block else html
    except Exception:  # the converter raises many things on TeX that it does not know; the rater sees the source
        return f"<code>{escape(tex)}</code>"


def _render_image(_renderer: Any, tokens: Sequence[Token], at: int, _options: Any, _env: Any) -> str:
    return f"<em>[picture: {escape(tokens[at].content or 'no description')}]</em>"

"""LaTeX in a text: where a formula begins and ends, and the formula as MathML.

latex2mathml converts; it knows fewer environments than people write, so what they mean the same by is renamed first. A
formula that it does not understand in full is no formula here: :func:`to_mathml` gives None, and its source is shown.
"""

import re

from latex2mathml.converter import convert
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

MAX_FORMULA = 2_000  # characters; a longer one is shown as written
FURTHEST = 8_000  # characters in which a formula inside a paragraph has to end
# An environment that the converter does not know, and the one that it knows and that looks the same.
_SAME = {
    "align": "align*", "aligned": "align*", "alignat": "align*", "alignat*": "align*", "alignedat": "align*",
    "flalign": "align*", "flalign*": "align*", "eqnarray": "align*", "eqnarray*": "align*", "split": "align*",
    "gather": "matrix", "gather*": "matrix", "gathered": "matrix", "multline": "matrix", "multline*": "matrix",
    "dcases": "cases",
}  # fmt: skip
_WITH_COUNT = ("alignat", "alignat*", "alignedat")  # \begin{alignat}{2}
_PLAIN = ("equation", "equation*", "displaymath", "math")
_KNOWN = ("align*", "cases", "array", "matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "Vmatrix", "smallmatrix")
# Those that begin a formula where they stand in a text, without dollars around them.
_STANDING = "|".join(sorted((re.escape(name) for name in (*_SAME, *_PLAIN, *_KNOWN)), key=len, reverse=True))
_BEGIN = re.compile(rf"\\begin\{{(?P<name>{_STANDING})\}}")
_DOLLARS = (
    (re.compile(r"\$\$(?P<tex>(?:[^$\n]|\n(?![ \t]*\n))+?)\$\$"), True),
    (re.compile(r"\$(?P<tex>[^\s$](?:[^$\n]*[^\s$\\])?)\$(?!\d)"), False),  # not "$5 and $6"
)
_UNKNOWN = re.compile(r"<mi>(?:\\|&(?:amp;)?</mi>)")


def inline_math(state: StateInline, silent: bool) -> bool:
    """A rule of markdown-it: a formula inside a paragraph."""
    found = _formula_at(state.src, state.pos, state.posMax)
    if found is None:
        return False
    tex, source, block = found
    if not silent:
        token = state.push("math", "", 0)
        token.content, token.markup, token.meta = tex, source, {"block": block}
    state.pos += len(source)
    return True


def _formula_at(text: str, start: int, end: int) -> tuple[str, str, bool] | None:
    """The formula that begins at ``start``: its TeX, the whole of it, and whether it stands by itself."""
    end = min(end, start + FURTHEST)
    if text[start] == "$":
        for pattern, block in _DOLLARS:
            if found := pattern.match(text, start, end):
                return found["tex"], found[0], block
        return None
    if text[start] != "\\":
        return None
    two = text[start : start + 2]
    begun = _BEGIN.match(text, start, end)
    closing = rf"\end{{{begun['name']}}}" if begun else {r"\[": r"\]", r"\(": r"\)"}.get(two)
    last = text.find(closing, start + 2, end) if closing else -1
    if closing is None or last <= start + 2:
        return None
    source = text[start : last + len(closing)]
    return source if begun else source[2:-2], source, two != r"\("


def block_math(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A rule of markdown-it: a formula of several lines, which mean nothing in Markdown then."""
    first = _line(state, start)
    closing = _closing(first)
    if closing is None:
        return False
    for line in range(start + 1, end):
        if state.sCount[line] < state.blkIndent:  # the list or quotation that it stands in ends before it
            return False
        if closing in _line(state, line):
            break
    else:
        return False
    if not _line(state, line).endswith(closing):
        return False
    if not silent:
        source = state.getLines(start, line + 1, state.tShift[start], False).strip()
        token = state.push("math_block", "", 0)
        token.content = source if first.startswith("\\begin") else source[2:-2]
        token.markup, token.meta, token.map = source, {"block": True}, [start, line + 1]
        state.line = line + 1
    return True


def _line(state: StateBlock, line: int) -> str:
    return state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].strip()


def _closing(first: str) -> str | None:
    """What ends the formula that a line begins and does not end itself."""
    for opening, closing in (("$$", "$$"), ("\\[", "\\]")):
        if first.startswith(opening) and closing not in first[2:]:
            return closing
    found = _BEGIN.match(first)
    closing = f"\\end{{{found['name']}}}" if found else ""
    return closing if found and closing not in first else None


def to_mathml(tex: str, *, block: bool) -> str | None:
    """The formula as MathML, or None where something in it is not known: a command, an environment, a stray ``&``."""
    if len(tex) > MAX_FORMULA:
        return None
    try:
        html = str(convert(_renamed(tex.strip()), display="block" if block else "inline"))
    except Exception:  # the converter raises many things on TeX that it does not know
        return None
    return None if _UNKNOWN.search(html) else html


def _renamed(tex: str) -> str:
    """The formula in the converter's environments, without what has no look (labels, and the lack of a number)."""
    for name in _WITH_COUNT:
        tex = re.sub(rf"(\\begin\{{{re.escape(name)}\}})\s*\{{\d+\}}", r"\1", tex)
    tex = re.sub(r"\\(?:nonumber|notag)(?![a-zA-Z])|\\label\{[^{}]*\}", "", tex)
    tex = re.sub(r"\\begin\{aligned\}\s*\[[tbc]\]", r"\\begin{aligned}", tex)

    def same(found: re.Match[str]) -> str:
        part, name = found[1], found[2]
        if name in _PLAIN:
            return ""
        if name in _SAME or name in _KNOWN:
            return rf"\{part}{{{_SAME.get(name, name)}}}"
        raise ValueError(f"an environment that is not known: {name}")

    return re.sub(r"\\(begin|end)\{([^{}]*)\}", same, tex)

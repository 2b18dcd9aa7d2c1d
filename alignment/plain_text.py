"""Text of others where something else would be read out of it: control characters, line breaks, Markdown.

Prompts, answers, kinds of prompts, names of raters and of models on servers are whatever somebody wrote. What shows
them shows exactly them.
"""

import re

# Control characters move the cursor, change colours or set the terminal's title; they are shown as their pictures.
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
CONTROLS = _PICTURES | {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
_BREAKS = "\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"  # what some reader or other takes for the end of a line
# What Markdown reads inside a text, and at the beginning of a block. An underscore between letters is none of it.
_INSIDE = re.compile(r"[\\`*\[\]<>&|~]|@(?=[\w-]+\.)|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.")
_AT_FRONT = re.compile(r"^(\d*)(?=[#+=.)-])")


def printable(text: str) -> str:
    """``text`` with its control characters shown instead of obeyed; line breaks and tabs stay."""
    return text.replace("\r\n", "\n").translate(CONTROLS)


def one_line(text: str) -> str:
    """``text`` on one line, its line breaks shown as signs: it can forge no line after its own."""
    shown = text.replace("\r\n", "\n").translate(dict.fromkeys(map(ord, _BREAKS), "␤") | {ord("\t"): " "})
    return shown.translate(CONTROLS)


def indented(text: str, by: str = "    ") -> str:
    """``text`` with its further lines indented, so that none of them looks like a line of its own."""
    first, *others = printable_breaks(text).split("\n")
    return printable("\n".join([first, *(f"{by}{line}" for line in others)]))


def printable_breaks(text: str) -> str:
    """``text`` with every kind of line break as the usual one."""
    return text.replace("\r\n", "\n").translate(dict.fromkeys(map(ord, _BREAKS), "\n"))


def markdown(text: str) -> str:
    """``text`` as Markdown (CommonMark, tables of GitHub's too) that reads as exactly it, on one line."""
    return _AT_FRONT.sub(r"\1\\", _INSIDE.sub(r"\\\g<0>", one_line(text).strip(" ")))


def markdown_lines(text: str) -> str:
    """The same with its lines kept, as hard breaks and paragraphs."""
    lines = [markdown(line) for line in printable_breaks(text).split("\n")]
    return re.sub(r"(?<=\S)\n(?=\S)", "\\\\\n", "\n".join(lines))


def markdown_code(text: str) -> str:
    """``text`` as a Markdown code span."""
    shown = one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    padding = " " if shown.startswith(("`", " ")) or shown.endswith(("`", " ")) else ""
    return f"{fence}{padding}{shown}{padding}{fence}" if shown.strip(" ") else markdown(shown)

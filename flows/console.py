"""What is written to the terminal. Nothing of it is parsed as markup: prompts, answers and errors are others' text.

Styles are given as :class:`rich.text.Text` or by ``style=``, never inside the text itself.
"""

import os
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from alignment.plain_text import printable


def print_json(text: str) -> None:
    """Prints JSON, with the control characters escaped that may stand in its strings as they are."""
    print(text.translate({code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}), flush=True)


class PlainConsole(Console):
    """A console that shows text as it is: no markup, no emoji codes, no highlighting, no lines broken at its width."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**({"soft_wrap": True} | options), markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """In the place of rich's own, which ends the program: a reader that goes away (`| head`) must stop no work."""
        self.quiet = True
        if self.file is sys.stdout:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still in its buffer goes nowhere

    def render_str(self, text: str, **options: Any) -> Text:
        """Called by rich for every string that it shows, in tables too."""
        return super().render_str(printable(text), **options)


def styled(*parts: str | tuple[str, str]) -> Text:
    """A line of plain parts and (text, style) parts."""
    clean = [printable(part) if isinstance(part, str) else (printable(part[0]), part[1]) for part in parts]
    return Text.assemble(*clean)

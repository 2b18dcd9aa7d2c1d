import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preference_ui.labelling.identity_leaks import names_itself
from preference_ui.web.rendering import to_html

ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "[click](JaVaScRiPt:alert(1))",
    "[click](data:text/html,<script>alert(1)</script>)",
    "![x](https://tracker.example/pixel.png)",
    "<svg/onload=alert(1)>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "$\\href{javascript:alert(1)}{x}$",
    "$\\text{<img src=x onerror=alert(1)>}$",
    "$$</math><script>alert(1)</script>$$",
    "```<img/onerror=alert(1)>\nx\n```",
    '[x](https://a.example "onmouseover=alert(1)")',
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<a href='https://x' style='position:fixed;inset:0'>x</a>",
    "<form action=https://evil.example><input name=p></form>",
]


def _tags(html: str) -> list[str]:
    return re.findall(r"<[^>]*>", html)


def _is_harmless(html: str) -> bool:
    allowed = re.compile(
        r"</?(?:p|br|hr|em|strong|s|del|code|pre|ul|ol|li|blockquote|h[1-6]|table|thead|tbody|tr|th|td|a|span|div|m\w+|semantics)"
        r"(?:\s+(?:class|title|start|display|mathvariant|stretchy|fence|form|lspace|rspace|minsize|maxsize|separator"
        r"|movablelimits|width|tabindex|displaystyle|scriptlevel|linethickness|columnalign|accent|accentunder)=\"[^\"]*\""
        r"|\s+style=\"text-align:\s?\w+;?\"|\s+href=\"(?:https?:|mailto:)[^\"]*\""
        r"|\s+rel=\"noopener noreferrer nofollow\")*\s*/?>"
    )
    return all(allowed.fullmatch(tag) for tag in _tags(html))


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_becomes_text(attack: str) -> None:
    html = to_html(attack)
    assert _is_harmless(html), html
    assert "tracker.example" not in html


@given(st.text(alphabet="<>\"'/=$\\[]()`!*_# \naonerjvscipt:;&{}^img", max_size=80))
def test_no_text_becomes_markup_of_its_own(text: str) -> None:
    assert _is_harmless(to_html(text))


def test_markdown_code_and_formulas_are_rendered() -> None:
    text = "**bold** and `x`\n\n```python\ndef f():\n    return 1\n```\n\n| a | b |\n|--:|---|\n| 1 | 2 |\n\n~~no~~"
    html = to_html(text)
    assert "<strong>bold</strong>" in html
    assert '<span class="k">def</span>' in html
    assert '<td style="text-align:right">1</td>' in html.replace(": right", ":right").replace("right;", "right")
    assert "<s>no</s>" in html


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("so $x^2$ it is", False),
        (r"so \(x^2\) it is", False),
        ("$$x^2$$", True),
        (r"\[x^2\]", True),
        ("$$\nx^2\n$$", True),
    ],
)
def test_every_way_to_write_a_formula(text: str, block: bool) -> None:
    html = to_html(text)
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in html
    assert ('display="block"' in html) is block


def test_prices_are_not_formulas_and_broken_ones_show_their_source() -> None:
    assert "<math" not in to_html("It costs $5 or $6.")
    assert "\\frac{" in to_html("$\\frac{$") or "$" in to_html("$\\frac{$")
    assert "&lt;b&gt;" in to_html("<b>raw</b>")


@pytest.mark.parametrize(
    "text",
    ["I am Claude.", "I'm ChatGPT, a language model", "I’m Qwen2.5", "As an AI model made by Anthropic, I cannot",
     "I am a large language model trained by OpenAI.", "My name is SmolLM2", "I was created by Mistral AI"],
)  # fmt: skip
def test_self_naming_is_noticed(text: str) -> None:
    assert names_itself(text)


@pytest.mark.parametrize(
    "text", ["Claude Monet painted it.", "Gemini is a constellation.", "I am an assistant.", "The llama is an animal."]
)
def test_ordinary_text_is_not_self_naming(text: str) -> None:
    assert not names_itself(text)


@pytest.mark.parametrize(
    "text", ["    indented", "```\nfenced\n```", "```python\nx = 1\n```", "| a | b |\n|---|---|\n| 1 | 2 |", "$$x$$"]
)
def test_what_scrolls_can_be_reached_by_keyboard(text: str) -> None:
    assert re.search(r'<(pre|table|math)\b[^>]* tabindex="0"', to_html(text)), to_html(text)

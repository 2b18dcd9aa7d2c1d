import re
from collections import Counter
from html import unescape

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
        r"(?:\s+(?:class|title|start|value|dir|display|mathvariant|stretchy|fence|form|lspace|rspace|minsize|maxsize|separator"
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
    assert re.search(r'<td style="text-align:\s?right;?"[^>]*>1</td>', html)
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


def _shown(html: str) -> str:
    return unescape(re.sub(r"<[^>]*>", "", html))


def test_lines_stand_as_they_were_written() -> None:
    assert to_html("one\ntwo\nthree").count("<br>") == 2
    assert _shown(to_html("one\ntwo")).split() == ["one", "two"]


@pytest.mark.parametrize(
    "name",
    ["align", "align*", "aligned", "split", "alignedat", "eqnarray", "gather", "gathered", "flalign", "multline"],
)
@pytest.mark.parametrize(
    "around", ["$$\n{}\n$$", "$${}$$", "\\[{}\\]", "\\[\n{}\n\\]", "so\n\n{}\n\nit is", "so {} it is"]
)
def test_environments_of_several_lines_are_formulas_or_as_they_were_written(name: str, around: str) -> None:
    count = "{2}" if name == "alignedat" else ""
    lines = "a \\\\\n- b" if name in ("gather", "gathered", "multline") else "a &= b \\\\\n- c &= d"
    source = f"\\begin{{{name}}}{count}\n{lines}\n\\end{{{name}}}"
    if around == "so {} it is":  # inside a line of text; a line that begins with a dash is a list there
        source = source.replace("\n", " ")
    html = to_html(around.format(source))
    assert html.count("<mtr>") == 2, html  # two lines, and none of the source's marks
    assert "&amp;" not in html
    assert "begin" not in html
    assert "columnalign" in html or "&" not in lines


@pytest.mark.parametrize(
    "tex", ["\\foo{x}", "\\begin{tikzpicture} x \\end{tikzpicture}", "a & b", "\\frac{", "x" * 2_500]
)
def test_a_formula_that_is_not_understood_is_shown_as_written(tex: str) -> None:
    for written in (f"$${tex}$$", f"$$\n{tex}\n$$", f"\\[{tex}\\]", f"so ${tex}$ then"):
        assert "".join(written.split()) in "".join(_shown(to_html(written)).split())


@pytest.mark.parametrize(
    "text",
    ["> " * 60 + "deep", "- " * 150 + "deep", "*_" * 70 + "deep" + "_*" * 70, "[deep]: https://a.example/b 'title'",
     "see [deep]\n\n[deep]: https://a.example", "| a |\n|---|\n| b | deep |", "[deep](ftp://a.example/b)",
     "<!-- deep -->", "[^1]: deep", "<deep>"],
)  # fmt: skip
def test_no_text_disappears(text: str) -> None:
    assert "deep" in _shown(to_html(text))


def test_addresses_of_definitions_and_numbers_of_items_are_shown() -> None:
    assert "https://a.example/b" in _shown(to_html("text\n\n[x]: https://a.example/b"))
    assert re.findall(r'<li\b[^>]* value="(\d+)"', to_html("1. one\n3. three\n2. two")) == ["1", "3", "2"]


@given(st.text(alphabet="ab1 \n>*_-#`[]()!|:$\\{}&;<", max_size=120))
def test_every_letter_of_a_text_is_seen_or_in_a_link(text: str) -> None:
    html = to_html(text)
    if "<math" in html or "[picture" in html or "```" in text or "~~~" in text or "&" in text:
        return  # another form of what was written
    seen = Counter(filter(str.isalnum, _shown(html) + "".join(re.findall(r'(?:href|title|value)="([^"]*)"', html))))
    assert Counter(filter(str.isalnum, text)) <= seen


def test_each_block_has_the_direction_of_its_own_text() -> None:
    html = to_html("Paris:\n\n- باريس\n\n> باريس\n\n# باريس\n\n| باريس |\n|---|\n| ب |")
    for tag in ("p", "h1", "th", "td"):
        assert re.search(rf'<{tag}\b[^>]* dir="auto"', html), tag
    for tag in ("ul", "li", "blockquote"):  # "auto" looks at no text of a block inside
        assert re.search(rf'<{tag}\b[^>]* dir="rtl"', html), tag
    mixed = to_html("- one\n- باريس\n\n1. 7 שלום\n\n> 1\n>\n> *a*")
    assert re.findall(r'<(ul|ol|li|blockquote)\b[^>]*? dir="(\w+)"', mixed) == [
        ("ul", "ltr"), ("li", "ltr"), ("li", "rtl"), ("ol", "rtl"), ("li", "rtl"), ("blockquote", "ltr"),
    ]  # fmt: skip
    assert "dir" not in to_html("```\ncode\n```")  # code goes from left to right

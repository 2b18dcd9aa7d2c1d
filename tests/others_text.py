"""Texts as others may write them, that something would be read out of: each with how it reads where it is shown.

The second of each pair is written by hand: the text itself, but for what moves a cursor or breaks a line.
"""

NASTY = (
    ("[/INST] [red]x[/red] [v1]", "[/INST] [red]x[/red] [v1]"),
    ("a | b || c", "a | b || c"),
    ("<script>alert(1)</script><!-- c --><b>", "<script>alert(1)</script><!-- c --><b>"),
    ("**bold** _it_ `code` ~~s~~ ``q``", "**bold** _it_ `code` ~~s~~ ``q``"),
    ("[link](javascript:x) ![p](http://x/p.png) [a][b]", "[link](javascript:x) ![p](http://x/p.png) [a][b]"),
    ("&amp; &lt; &#65; <https://a.b>", "&amp; &lt; &#65; <https://a.b>"),
    ("https://evil.example www.evil.example a@b.example", "https://evil.example www.evil.example a@b.example"),
    ("{{ 7 * 7 }} {% raw %} ${x} $x$", "{{ 7 * 7 }} {% raw %} ${x} $x$"),
    ("=1+1", "=1+1"),
    ("1. one", "1. one"),
    ("- item", "- item"),
    ("+ item", "+ item"),
    ("# head", "# head"),
    ("> quote", "> quote"),
    ("```", "```"),
    ("---", "---"),
    ("\\ backslash \\| \\", "\\ backslash \\| \\"),
    ("@channel <!channel> :smile:", "@channel <!channel> :smile:"),
    ("line\n# heading\n\n    code", "line␤# heading␤␤    code"),
    ("line\n12:00:00 ERROR forged", "line␤12:00:00 ERROR forged"),
    ("over\rwritten\x0bx\x85y\u2028z", "over␍written␤x␤y␤z"),
    ("\x1b[31mred\x1b[0m \x1b]0;title\x07", "␛[31mred␛[0m ␛]0;title␇"),
    ("\x9b31m\x7f\x00", "\ufffd31m␡␀"),
)

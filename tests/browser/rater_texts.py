"""What raters may be given to read: each kind of text that has broken a page, as answers to a question."""

from alignment.records import Message

LONG_LINE = "value = " + " + ".join(f"argument_number_{at}" for at in range(160))
PROSE = (
    "The water boils earlier on a mountain, because the air presses on it less.\nPasta takes longer there.",
    "It is the same everywhere. Water boils at 100 °C, and that is that.",
)
CODE = (f"One line:\n\n```python\n{LONG_LINE}\n```", f"Also `{'x' * 400}` and\n\n    {LONG_LINE}")
MATHEMATICS = (
    "\\begin{align}\n(a+b)^2 &= a^2 + 2ab + b^2 \\\\\n(a-b)^2 &= a^2 - 2ab + b^2\n\\end{align}\n\nso $a^2 \\ge 0$.",
    "$$\\begin{aligned} x &= 1 \\\\ y &= 2 \\end{aligned}$$ and $$"
    + " + ".join(f"x_{{{at}}}^2" for at in range(60))
    + "$$",
)
ARABIC = (
    "عاصمة فرنسا هي باريس، وهي أكبر مدنها.\n\n1. تقع على نهر السين.\n2. فيها برج إيفل.",
    "لا أعرف ذلك (Paris?) ولكن ربما ليون.",
)
LONG = ("A long answer says it again. " * 350, "A short one.")
CONVERSATION = tuple(
    Message(role="user" if at % 2 == 0 else "assistant", content=f"Turn {at + 1}: " + "we talk about rivers. " * 12)
    for at in range(11)
)  # eleven turns, and the answers are the twelfth
KINDS = {"prose": PROSE, "code": CODE, "mathematics": MATHEMATICS, "arabic": ARABIC, "long": LONG,
         "conversation": PROSE}  # fmt: skip

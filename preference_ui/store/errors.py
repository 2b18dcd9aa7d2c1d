"""A request that cannot be granted, with a sentence that a rater understands."""


class Refusal(Exception):  # noqa: N818 (it is an answer, not an error)
    """``code`` is for the widget, ``sentence`` for the person."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence

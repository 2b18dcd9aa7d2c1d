"""How a conversation is written for an encoder-decoder (T5, BART), whose tokenizer has no chat template.

A rule writes it, as a chat template that is given to the tokenizer where it is loaded and saved with it: so everything
that reads conversations (:mod:`alignment.chat`) reads these as any other.

* The encoder reads what stands before the answer, within what the tokenizer itself writes around a text (T5:
  ``text</s>``, BART: ``<s>text</s>``). One message is its text alone; a system message before it is a line of its own
  above, such as ``translate English to German:``. Longer talks are a line for each message, ``role: text``.
* The decoder's target is the answer within what the tokenizer writes around a target, whose end is EOS. An answer that
  was cut off ends with its last word.
* Of several answers in a conversation the last one is learned; the encoder reads the earlier ones.

A recipe's ``model.chat_template`` takes the rule's place; it then writes the tokenizer's control tokens as well.
"""

import json
from typing import Any, NamedTuple


class TextFrame(NamedTuple):
    """The token ids that a tokenizer writes before and after a text."""

    before: list[int]
    after: list[int]


TEMPLATE = """\
{%- set answered = messages[-1].role == 'assistant' -%}
{%- set asked = messages[:-1] if answered else messages -%}
{%- set plain = asked | length == 1 or (asked | length == 2 and asked[0].role == 'system') -%}
{{- BEFORE -}}
{%- for message in asked -%}
{%- if not loop.first %}{{ '\\n' }}{% endif -%}
{%- if not plain %}{{ message.role + ': ' }}{% endif -%}
{{- message.content -}}
{%- endfor -%}
{%- if answered or add_generation_prompt %}{{ AFTER }}{% endif -%}
{%- if answered %}{{ BEGIN + messages[-1].content + eos_token }}{% endif -%}
"""


def text_frame(tokenizer: Any, *, target: bool = False) -> TextFrame:
    """What a tokenizer writes around a text that the encoder reads, or around a ``target`` of the decoder."""
    given = {"text_target" if target else "text": "a"}
    written = tokenizer(**given, return_special_tokens_mask=True)
    ids, special = list(written["input_ids"]), list(written["special_tokens_mask"])
    own = [place for place, is_special in enumerate(special) if not is_special]
    if not own:
        return TextFrame([], [])
    return TextFrame(ids[: own[0]], ids[own[-1] + 1 :])


def rule_problem(tokenizer: Any) -> tuple[str, str] | None:
    """(What is wrong, what to do) where conversations cannot be written by the rule above; None where they can."""
    remedy = "use a model whose tokenizer is one of T5's or BART's kind, or set model.chat_template"
    if tokenizer.eos_token is None:
        return "the tokenizer has no EOS token", "use a model whose tokenizer names one"
    if text_frame(tokenizer, target=True).after != [tokenizer.eos_token_id]:
        return f"the tokenizer does not end a target of the decoder with {tokenizer.eos_token} alone", remedy
    text = "How is it? It is so, one says."
    rendered = tokenizer(_written(tokenizer, text), add_special_tokens=False)["input_ids"]
    if rendered != tokenizer(text)["input_ids"]:
        return "the tokenizer reads a text otherwise once its control tokens are written out", remedy
    return None


def write_by_rule(tokenizer: Any) -> None:
    """Gives a tokenizer without a chat template the rule's, where :func:`rule_problem` finds nothing against it."""
    if not tokenizer.chat_template and rule_problem(tokenizer) is None:
        tokenizer.chat_template = rule_template(tokenizer)


def rule_template(tokenizer: Any) -> str:
    """The rule as a Jinja template, with the tokenizer's own control tokens in it."""
    encoder, decoder = text_frame(tokenizer), text_frame(tokenizer, target=True)
    template = TEMPLATE
    for name, ids in (("BEFORE", encoder.before), ("AFTER", encoder.after), ("BEGIN", decoder.before)):
        template = template.replace(name, json.dumps(_text(tokenizer, ids), ensure_ascii=False))
    return template


def _written(tokenizer: Any, text: str) -> str:
    frame = text_frame(tokenizer)
    return _text(tokenizer, frame.before) + text + _text(tokenizer, frame.after)


def _text(tokenizer: Any, ids: list[int]) -> str:
    return "".join(map(str, tokenizer.convert_ids_to_tokens(ids)))

"""Comparisons from files that people bring, and preference sets as files that training reads."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from alignment.data import trl
from alignment.data.columns import encodable, fail, optional_text
from alignment.data.conversations import require_turns
from alignment.data.jsonl import Row, parse_rows, write_records
from alignment.data.preferences import write_preferences
from alignment.data.prompts import prompt_turns
from alignment.digests import content_id, pair_id, prompt_id
from alignment.durable_files import file_digest
from alignment.errors import Fault, InputError, errors_of, raise_faults
from alignment.records import Comparison, Demonstration, Message, PreferencePair, Prompt, Record, Response, Sampling

Ranking = tuple[tuple[str, ...], ...]
Form = Literal["messages", "text"]
MOST_ANSWERS = 9  # that are put side by side
FROM_FILE = "file"  # the "model" of an answer whose maker is not known


class KnownComparison(NamedTuple):
    """A comparison from a file; ``ranking`` (best first) where the file says which answer is better."""

    comparison: Comparison
    ranking: Ranking | None


def read_comparisons(path: Path) -> list[KnownComparison]:
    """The comparisons of a .jsonl, .json or .parquet file, in its order, each once.

    A row is a whole `Comparison` record; or ``prompt`` (text or messages) with ``responses`` (2 to 9 texts, or objects
    with ``text``, ``model`` and ``finished``); or TRL's ``prompt``, ``chosen``, ``rejected``. Raises InputError with
    every fault.
    """
    return list(first_rows(numbered_comparisons(path)).values())


def numbered_comparisons(path: Path) -> list[tuple[int, KnownComparison]]:
    """The comparison of every row with the row's number, repeated ones included. Raises InputError."""
    return parse_rows(path, lambda row: parse_row(row, 2))


def read_known(path: Path) -> list[KnownComparison]:
    """The comparisons of a file of which every row says which answer is better. Raises InputError with every fault."""
    rows = numbered_comparisons(path)
    problem, remedy = "which answer is better is not said", "write prompt, chosen and rejected"
    raise_faults([Fault(problem, remedy, str(path), row) for row, known in rows if known.ranking is None])
    return list(first_rows(rows).values())


def first_rows(rows: Sequence[tuple[int, KnownComparison]]) -> dict[str, KnownComparison]:
    """Each comparison once, by its id, in the order of the first row that has it."""
    first: dict[str, KnownComparison] = {}
    for _number, known in rows:
        first.setdefault(known.comparison.id, known)
    return first


def write_snapshot(path: Path, pairs: Sequence[PreferencePair], form: Form = "messages") -> str:
    """Writes TRL's columns with ``margin``, ``raters`` and ``agreement``, as .jsonl or .parquet. Returns the digest.

    The digest is of the pairs, not of the file's bytes: the same votes give the same digest in either format.
    """
    write_preferences(path, pairs, form, details=True)
    return pairs_digest(pairs)


def pairs_digest(pairs: Sequence[PreferencePair]) -> str:
    """SHA-256 of pairs in their order."""
    digest = hashlib.sha256()
    for pair in pairs:
        said = pair.model_dump(mode="json")
        for name in ("chosen_finished", "rejected_finished"):
            if said[name]:  # as before it was kept: the digest of votes that were frozen then stays
                del said[name]
        digest.update(json.dumps(said, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def write_votes(path: Path, records: Sequence[Record]) -> str:
    """Writes votes (or demonstrations) as .jsonl. Returns the file's SHA-256. Raises InputError for another name."""
    if path.suffix != ".jsonl":
        raise InputError([Fault("the format is not known by its name", "use .jsonl", file=str(path))])
    write_records(path, records)
    return file_digest(path)


class Correction(NamedTuple):
    """A rater's better version of one answer of a comparison."""

    comparison: Comparison
    response: str
    text: str


def corrected_pairs(corrections: Sequence[Correction]) -> list[PreferencePair]:
    """Each correction as a preference over the answer that it was made from."""
    pairs = []
    for comparison, response, text in corrections:
        original = next(one for one in comparison.responses if one.id == response)
        if text == original.text:
            continue
        prompt = comparison.prompt
        identifier = pair_id(prompt.messages, text, original.text)
        pairs.append(
            PreferencePair(id=identifier, prompt_id=prompt.id, prompt=prompt.messages, chosen=text,
                           rejected=original.text, rejected_finished=original.finished, rater_kind="human",
                           kind=prompt.kind)
        )  # fmt: skip
    return pairs


def demonstrations(corrections: Sequence[Correction]) -> list[Demonstration]:
    """Each correction as a conversation to imitate, in the order of the ids, each once."""
    return _imitated((comparison.prompt.messages, text, comparison.prompt.kind) for comparison, _, text in corrections)


def rewritten_demonstrations(pairs: Sequence[PreferencePair]) -> list[Demonstration]:
    """The same of the pairs that corrections make (:func:`corrected_pairs`)."""
    return _imitated((pair.prompt, pair.chosen, pair.kind) for pair in pairs)


def _imitated(written: Iterable[tuple[Sequence[Message], str, str]]) -> list[Demonstration]:
    made = {}
    for prompt, text, kind in written:
        turns = (*prompt, Message(role="assistant", content=text))
        identifier = prompt_id(turns)
        made[identifier] = Demonstration(id=identifier, messages=turns, kind=kind, source="correction")
    return [made[identifier] for identifier in sorted(made)]


def parse_row(row: Row, fewest: int) -> KnownComparison:
    """The comparison of one row, of ``fewest`` answers or more. Raises InputError with faults without file and row."""
    if fewest == 1 and "response" in row and "responses" not in row:
        return KnownComparison(compared(prompt_turns(row), [row["response"]], row, 1), None)
    if "responses" not in row:
        return _from_pair(row)
    if isinstance(row.get("prompt"), dict):
        try:
            comparison = Comparison.model_validate(row)
        except ValidationError as error:
            faults = [
                Fault(one["msg"], "write a whole comparison", field=_dotted(one["loc"])) for one in errors_of(error)
            ]
            raise InputError(faults) from None
        return KnownComparison(_checked(comparison, fewest), None)
    return KnownComparison(compared(prompt_turns(row), row["responses"], row), None)


def _checked(comparison: Comparison, fewest: int) -> Comparison:
    """A whole record, where its turns are in order and its answers say something and can be told apart."""
    require_turns(comparison.prompt.messages, "user", "prompt.messages")
    if len(comparison.responses) < fewest:
        fail("one answer alone", "give two to nine answers to compare", "responses")
    for at, response in enumerate(comparison.responses):
        if not response.text.strip():
            fail("empty", "write the answer, or leave it out", f"responses.{at}.text")
    if len({response.id for response in comparison.responses}) != len(comparison.responses):
        fail("two answers have one id", "give each its own", "responses")
    return comparison


def _from_pair(row: Row) -> KnownComparison:
    pair = trl.parse(row)[0]
    if not isinstance(pair, PreferencePair):
        fail("the two answers are not to the same prompt", "give two answers to one prompt", "chosen")
    return known_pair(pair, row)


def known_pair(pair: PreferencePair, row: Row) -> KnownComparison:
    """The two answers of a pair, and that the first is the better one; ``row`` may name its ``kind``."""
    answers = [
        {"text": text, "finished": finished}
        for text, finished in ((pair.chosen, pair.chosen_finished), (pair.rejected, pair.rejected_finished))
    ]
    comparison = compared(pair.prompt, answers, row)
    chosen, rejected = comparison.responses
    return KnownComparison(comparison, ((chosen.id,), (rejected.id,)))


def compared(messages: Sequence[Message], answers: Any, row: Row, fewest: int = 2) -> Comparison:
    """Answers (texts, or objects with ``text``) to one conversation as a comparison. Raises InputError."""
    if not isinstance(answers, list) or not fewest <= len(answers) <= MOST_ANSWERS:
        fail("not a list of 2 to 9 answers", 'write "responses": ["…", "…"]', "responses")
    question = prompt_id(messages)
    responses = [_response(answer, question, at) for at, answer in enumerate(answers)]
    if len({response.text for response in responses}) != len(responses):
        fail("two answers are the same", "leave one of them out", "responses")
    identifier = content_id(["comparison", question, [response.id for response in responses]])
    prompt = Prompt(
        id=question, messages=tuple(messages), kind=optional_text(row, "kind") or "general", source=FROM_FILE
    )
    return Comparison(id=identifier, prompt=prompt, responses=tuple(responses))


def _response(answer: Any, question: str, at: int) -> Response:
    told = answer if isinstance(answer, dict) else {"text": answer}
    text, model, finished = told.get("text"), told.get("model", FROM_FILE), told.get("finished", True)
    if isinstance(text, str):
        encodable(text, f"responses.{at}")
    if not isinstance(text, str) or not text.strip() or not isinstance(model, str):
        fail("not a text, or empty", 'write the answer, or {"text": …, "model": …}', f"responses.{at}")
    if not isinstance(finished, bool):
        fail("not true or false", "write false for an answer that was cut off, or leave it out",
             f"responses.{at}.finished")  # fmt: skip
    identifier = content_id(["response", question, model, text])
    return Response(
        id=identifier, prompt_id=question, text=text, model=model, sampling=Sampling(), seed=0, tokens=0,
        finished=finished,
    )  # fmt: skip


def _dotted(location: Sequence[int | str]) -> str:
    return ".".join(map(str, location))

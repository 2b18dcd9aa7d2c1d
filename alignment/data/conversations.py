"""Conversations: the order of their turns, and one conversation that two columns of a row describe.

Files say the same in several ways: the prompt as a text, as messages, or as the beginning of a whole dialogue in
``chosen`` or ``completion``; the system message in a column of its own or among the messages. Descriptions are compared
as conversations, without regard to outer white space. Where they agree the turns are taken once; where they do not, the
row is a fault, because joining them would train on a question that is asked twice.
"""

from collections.abc import Sequence
from itertools import pairwise

from alignment.data.columns import Messages, fail
from alignment.errors import Fault, InputError
from alignment.records import Message


def require_turns(turns: Messages, last: str, field: str) -> Messages:
    """``turns``, where they are a conversation that ends with a turn of ``last``.

    A system message may only come first; then the user and the assistant speak in turn, the user first, and every turn
    says something. What tools give back stands behind the assistant's turn that called them. Raises InputError with all
    that is wrong.
    """
    faults = list(_order_faults(turns, last, field))
    if faults:
        raise InputError(faults)
    return turns


def _order_faults(turns: Messages, last: str, field: str) -> list[Fault]:
    faults: list[Fault] = []
    if any(message.role == "system" for message in turns[1:]):
        faults.append(Fault("a system message comes after the first", "put one system message first", field=field))
    if turns[-1].role != last:
        problem = f"the last message is of the {turns[-1].role}"
        faults.append(Fault(problem, f"end with a message of the {last}", field=field))
    elif not turns[-1].content.strip():
        faults.append(Fault(f"the {last}'s last message is empty", "write the text, or remove the row", field=field))
    faults += [
        Fault(f"message {number} (the {turn.role}'s) is empty", "write the text, or remove the row", field=field)
        for number, turn in enumerate(turns[:-1], start=1)
        if not turn.content.strip()
    ]
    spoken = [(number, turn) for number, turn in enumerate(turns, start=1) if turn.role != "system"]
    if all(turn.role != "user" for _number, turn in spoken):
        remedy = "put the user's message before the assistant's"
        return [*faults, Fault("no message is the user's", remedy, field=field)]
    if spoken[0][1].role != "user":
        problem = f"the {spoken[0][1].role} speaks first"
        faults.append(Fault(problem, "begin with a message of the user", field=field))
    for (before, one), (after, other) in pairwise(spoken):
        if other.role == "tool" and one.role == "user":
            problem = f"message {after} is of a tool, and the assistant called none before it"
            faults.append(Fault(problem, "put the assistant's message that calls it before it", field=field))
        if one.role == other.role != "tool" and after == before + 1:
            problem = f"messages {before} and {after} are both of the {one.role}"
            remedy = "join them, or put the other's turn between them"
            if one.content.strip() == other.content.strip():
                problem, remedy = f"message {after} repeats message {before}", "remove one of them"
            faults.append(Fault(problem, remedy, field=field))
    return faults


def same_turns(one: Sequence[Message], other: Sequence[Message]) -> bool:
    """Whether two conversations say the same, outer white space aside."""
    return _plain(one) == _plain(other)


def with_system_message(turns: Messages, system: str | None) -> Messages:
    """``turns`` after the system message of the column ``system``, where there is one; once, where both say it.

    Raises InputError where the messages begin with another system message.
    """
    if system is None:
        return turns
    message = Message(role="system", content=system)
    if turns[0].role != "system":
        return (message, *turns)
    if not same_turns([message], turns[:1]):
        fail("a system message stands both here and in the messages", "keep one of them", "system")
    return turns


def joined(prompt: Messages, answer: Messages, field: str) -> Messages:
    """The conversation of a prompt and of a column that holds its answer, or the whole conversation once more.

    Either may leave out the system message that the other has. Raises InputError where the column begins with another
    conversation than the prompt.
    """
    if answer[0].role == "assistant":
        return (*prompt, *answer)
    given, told = without_system(prompt), without_system(answer)
    systems = [turns[0] for turns in (prompt, answer) if turns[0].role == "system"]
    differ = len(systems) == 2 and not same_turns(systems[:1], systems[1:])
    if differ or len(told) <= len(given) or not same_turns(given, told[: len(given)]):
        what = "has another system message" if differ else "does not begin with the conversation in prompt"
        fail(what, "give the answer alone, or the very same conversation before it", field)
    return (*systems[:1], *given, *told[len(given) :])


def without_system(turns: Messages) -> Messages:
    """``turns`` without a system message at their beginning."""
    return turns[1:] if turns and turns[0].role == "system" else turns


def _plain(turns: Sequence[Message]) -> list[tuple[str, str]]:
    return [(turn.role, turn.content.strip()) for turn in turns]

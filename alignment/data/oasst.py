"""Open-Assistant message trees (Köpf et al. 2023): replies to one prompter message, ranked by people, 0 is the best.

All pairs of a ranking are taken, as Ouyang et al. 2022 (section 3.5) do, with the difference of the ranks as margin.
Only replies to the same message are compared; those of other branches answer another conversation.
"""

from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import Any, Literal

from alignment.data.columns import Messages, encodable, fail
from alignment.data.jsonl import Row
from alignment.data.pairing import Skip, answer_pair
from alignment.records import Message, PreferencePair

Pairing = Literal["all", "adjacent"]

MOST_REPLIES = 10_000  # to one message; a rank beyond is no place in an order
_ROLES = {"prompter": "user", "assistant": "assistant"}
_TREE = "export message trees: one object a line, with replies inside replies"


def parse(row: Row, pairing: Pairing = "all") -> list[PreferencePair | Skip]:
    """The pairs of one tree: of ``all`` replies to a message, or of those ``adjacent`` in the ranking."""
    return [pair for prompt, replies in _questions(_root(row)) for pair in _pairs(prompt, replies, pairing)]


def questions(row: Row) -> list[tuple[Messages, list[tuple[str, int | None]], list[Skip]]]:
    """Every prompter message of a tree as the conversation up to it, with the assistant's replies to it and their
    ranks in the tree's order, and why others are left out."""
    found = []
    for prompt, replies in _questions(_root(row)):
        answers: list[tuple[str, int | None]] = []
        skipped: list[Skip] = []
        for where, reply in replies:
            if reply.get("role") != "assistant":
                continue
            if _usable(reply):
                answers.append((_said(reply, where), _rank(reply, where)))
            else:
                skipped.append(Skip.DELETED)
        found.append((prompt, answers, skipped))
    return found


def _root(row: Row) -> dict[str, Any]:
    root = row.get("prompt")
    if not isinstance(root, dict):
        fail("no tree of messages", _TREE, "prompt")
    return root


def _rank(reply: dict[str, Any], where: str) -> int | None:
    rank = reply.get("rank")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank < MOST_REPLIES):
        fail("the rank is not a whole number", "rank replies 0 (best), 1, 2 …", f"{where}.rank")
    return rank


def _questions(root: dict[str, Any]) -> Iterator[tuple[Messages, list[tuple[str, dict[str, Any]]]]]:
    """Every prompter message as the conversation up to it, with the replies to it and where they stand."""
    waiting: list[tuple[Messages, dict[str, Any], str]] = [((), root, "prompt")]
    while waiting:
        before, node, field = waiting.pop()
        replies = _replies(node, field)
        if not _usable(node):
            continue
        role = _ROLES.get(node.get("role", ""))
        if role is None:
            fail(f"unknown role {node.get('role')!r}", "use prompter or assistant", f"{field}.role")
        if role == (before[-1].role if before else "assistant"):
            problem = f"a message of the {node['role']} " + ("answers one of the same" if before else "begins the tree")
            fail(problem, "prompter and assistant speak in turn, the prompter first", f"{field}.role")
        here = (*before, Message.model_validate({"role": role, "content": _said(node, field)}))
        if role == "user":
            yield here, replies
        waiting += [(here, reply, where) for where, reply in reversed(replies)]


def _pairs(
    prompt: Messages, replies: list[tuple[str, dict[str, Any]]], pairing: Pairing
) -> Iterator[PreferencePair | Skip]:
    answers = [(where, reply) for where, reply in replies if reply.get("role") == "assistant"]
    if len(answers) < 2:
        return
    ranked: list[tuple[int, str]] = []
    for where, reply in answers:
        if not _usable(reply):
            yield Skip.DELETED
        elif (rank := _rank(reply, where)) is None:
            yield Skip.UNRANKED
        else:
            ranked.append((rank, _said(reply, where)))
    ranked.sort(key=lambda answer: answer[0])
    for (better, chosen), (worse, rejected) in combinations(ranked, 2) if pairing == "all" else pairwise(ranked):
        if better == worse:
            yield Skip.TIED
        else:
            yield answer_pair(prompt, chosen, rejected, margin=float(worse - better))


def _said(node: dict[str, Any], field: str) -> str:
    return encodable(node.get("text"), f"{field}.text").strip()


def _replies(node: dict[str, Any], field: str) -> list[tuple[str, dict[str, Any]]]:
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
        fail("the replies are not a list of messages", _TREE, f"{field}.replies")
    return [(f"{field}.replies.{index}", reply) for index, reply in enumerate(replies)]


def _usable(node: dict[str, Any]) -> bool:
    return not node.get("deleted") and node.get("review_result") is not False

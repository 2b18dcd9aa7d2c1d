"""The review desk: records found, opened, withdrawn, put back and decided, out of Gradio's own components.

Texts are shown as they are written, in cells and fields, never as Markdown or HTML. Every handler asks again who calls.
"""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from preference_ui.accounts.auth import Account
from preference_ui.labelling.queue import put_back, withdraw
from preference_ui.labelling.ruling import adjudicate, read_ruling
from preference_ui.labelling.vote_schema import FLAG_REASONS, storable
from preference_ui.quality.records import PAGE, RecordFilter, State, find_records, open_record
from preference_ui.store.errors import Refusal
from preference_ui.store.store import Store
from preference_ui.store.tallies import queue_tallies_now
from preference_ui.web.review.access import AT_ONCE, administrators_only
from preference_ui.web.review.imports import imports_tab
from preference_ui.web.review.queues import queues_tab

LIST = ["Record", "Queue", "Question", "Votes", "Disagreement", "Marks", "Newest vote"]
LIST_WIDTHS: list[str | int] = ["14%", "11%", "33%", "7%", "14%", "10%", "11%"]
ANSWERS = ["Answer", "Version", "Text"]
VOTES = ["Rater", "Said", "Reason", "Comment", "Corrected", "Scores", "When", "Counts"]
TRAIL = ["When", "Who", "What"]
_TOP = (
    "<header class='review-head'><h1>Review</h1>"
    "<nav aria-label='Pages'><a href='/admin'>Administration</a><a href='/rate'>Rate</a></nav></header>"
)
ANY = "any"
Rows = list[list[Any]]
Shown = tuple[str, str, Rows, Rows, Rows, str]  # of a record: id, question, answers, votes, trail; and what to say
_CLOSED: tuple[str, str, Rows, Rows, Rows] = ("", "", [], [], [])


def review_page(store: Store, artifacts: Path | None = None) -> gr.Blocks:
    """The page for administrators. ``artifacts`` is the folder of those that may be imported from."""
    desk = ReviewDesk(store)
    with gr.Blocks(title="Review", analytics_enabled=False) as page:
        gr.HTML(_TOP)
        with gr.Tabs():
            with gr.Tab("Records"):
                _records_tab(page, desk)
            with gr.Tab("Queues") as queues:
                queues_tab(queues, store)
            with gr.Tab("Import") as imports:
                imports_tab(imports, store, artifacts)
    return page


def _records_tab(page: gr.Blocks, desk: "ReviewDesk") -> None:
    now: Callable[[], dict[str, Any]] = partial(dict, AT_ONCE)
    with gr.Row():
        queue = gr.Dropdown([ANY], value=ANY, label="Queue", allow_custom_value=True)
        state = gr.Dropdown(list(get_args(State)), value=ANY, label="Which")
        reason = gr.Dropdown([ANY, *FLAG_REASONS], value=ANY, label="Flagged as")
        rater = gr.Textbox(label="Voted on by", max_lines=1)
    with gr.Row():
        words = gr.Textbox(label="Words of the question, or the record's id", max_lines=1)
        since = gr.DateTime(label="Voted on since", type="datetime", timezone="UTC", include_time=False)
        until = gr.DateTime(label="and before", type="datetime", timezone="UTC", include_time=False)
        number = gr.Number(1, label="Page", precision=0, minimum=1)
    find = gr.Button("Find", variant="primary")
    said = gr.Textbox(label="Found", interactive=False, elem_id="found")
    records = gr.Dataframe(headers=LIST, datatype="str", interactive=False, wrap=True, label="Records",
                           elem_id="records", column_widths=LIST_WIDTHS)  # fmt: skip
    record = gr.Textbox(label="Open record", max_lines=1, elem_id="record", submit_btn="Open")
    question = gr.Textbox(label="Conversation", interactive=False, lines=2, elem_id="question")
    answers = gr.Dataframe(headers=ANSWERS, datatype="str", interactive=False, wrap=True, label="Answers",
                           elem_id="answers", column_widths=["8%", "14%", "78%"])  # fmt: skip
    votes = gr.Dataframe(headers=VOTES, datatype="str", interactive=False, wrap=True, label="Votes",
                         elem_id="votes")  # fmt: skip
    with gr.Row():
        ruling = gr.Textbox(label='Ruling: "A > B", "A = B", "C > A = B" or "both bad"', elem_id="ruling")
        comment = gr.Textbox(label="Why", max_lines=3)
    with gr.Row():
        decide, away, back = (gr.Button(words) for words in ("Decide", "Withdraw", "Put back, and hand out"))
    trail = gr.Dataframe(headers=TRAIL, datatype="str", interactive=False, label="Who did what",
                         elem_id="trail")  # fmt: skip
    chosen = [queue, state, reason, rater, words, since, until, number]
    opened = [record, question, answers, votes, trail, said]
    page.load(desk.queues, None, [queue], **now())
    gr.on([page.load, find.click, number.submit, words.submit], desk.find, chosen, [records, said], **now())
    records.select(desk.select, None, opened, **now())
    record.submit(desk.open, [record], opened, **now())
    decide.click(desk.decide, [record, ruling, comment], opened, **now())
    away.click(desk.withdraw, [record], opened, **now())
    back.click(desk.put_back, [record], opened, **now())


class ReviewDesk:
    """What the page does."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def queues(self, request: gr.Request) -> Any:
        """The names of the queues, for the list to choose from."""
        found, _said = administrators_only(request, lambda _account: (sorted(queue_tallies_now(self.store)), ""), ([],))
        return gr.update(choices=[ANY, *found])

    def find(
        self, queue: str, state: State, reason: str, rater: str, words: str, since: datetime | None,
        until: datetime | None, number: float | None, request: gr.Request,
    ) -> tuple[Rows, str]:  # fmt: skip
        """A page of records, and how many there are."""

        def look(_account: Account) -> tuple[Rows, str]:
            if not all(storable(text) for text in (queue, reason, rater, words)) or state not in get_args(State):
                raise Refusal("malformed", "This search could not be read.")
            chosen = RecordFilter(
                queue=None if queue in (ANY, "", None) else queue, rater=(rater or "").strip().lower() or None,
                state=state, reason=None if reason in (ANY, "", None) else reason, text=(words or "").strip()[:200],
                since=since, until=until,
            )  # fmt: skip
            at = max(1, int(number or 1))
            page = find_records(self.store, chosen, page=at - 1)
            pages = max(1, -(-page.found // PAGE))
            return [_line(one) for one in page.lines], f"{page.found} records; page {at} of {pages}"

        return administrators_only(request, look, ([],))

    def select(self, event: gr.SelectData, request: gr.Request) -> Shown:
        """Opens the record whose row was clicked."""
        row = event.row_value or [""]
        return self.open(str(row[0]), request)

    def open(self, record: str, request: gr.Request) -> Shown:
        """Opens a record by its id."""
        return self._act(request, record, lambda _account: "")

    def decide(self, record: str, ruling: str, comment: str, request: gr.Request) -> Shown:
        """Stores an administrator's ruling."""

        def act(account: Account) -> str:
            known = open_record(self.store, record)
            wire = read_ruling(ruling, len(known["answers"])) | {"comment": (comment or "")[:2000]}
            adjudicate(self.store, account.id, record, wire)
            return "Decided."

        return self._act(request, record, act)

    def withdraw(self, record: str, request: gr.Request) -> Shown:
        """Takes the record out of its queue."""

        def act(account: Account) -> str:
            open_record(self.store, record)
            return "Withdrawn." if withdraw(self.store, [record], actor=account.name) else "It was withdrawn before."

        return self._act(request, record, act)

    def put_back(self, record: str, request: gr.Request) -> Shown:
        """Puts the record back, and hands it out again where it was held."""

        def act(account: Account) -> str:
            open_record(self.store, record)
            return "Put back." if put_back(self.store, [record], actor=account.name) else "It is in its queue."

        return self._act(request, record, act)

    def _act(self, request: gr.Request, record: str, act: Callable[[Account], str]) -> Shown:
        def whole(account: Account) -> Shown:
            if not isinstance(record, str) or not storable(record):
                raise Refusal("no_record", "There is no such record.")
            said = act(account)
            return (*_opened(open_record(self.store, record.strip())), said)

        return administrators_only(request, whole, (record if isinstance(record, str) else "", *_CLOSED[1:]))


def _line(one: Any) -> list[Any]:
    marks = [name for name, there in (("held", one.held), ("withdrawn", one.withdrawn), ("ruled", one.ruled),
                                      (f"{one.flags} flags", one.flags), (f"{one.comments} comments", one.comments),
                                      (f"{one.corrections} corrections", one.corrections)) if there]  # fmt: skip
    return [one.id, one.queue, one.question, one.votes, f"{one.disagreement:.0%}", ", ".join(marks), _when(one.newest)]


def _opened(found: dict[str, Any]) -> tuple[str, str, Rows, Rows, Rows]:
    conversation = "\n\n".join(f"{role}: {content}" for role, content in found["prompt"])
    answers = [[one["letter"], one["model"], one["text"]] for one in found["answers"]]
    votes = [
        [one["rater"], one["said"], one["reason"], one["comment"],
         f"{one['corrects']}: {one['correction']}" if one["correction"] else "",
         ", ".join(f"{name} {score}" for name, score in one["scores"].items()), _when(one["created"]),
         "changed since" if one["superseded"] else "left out" if one["excluded"] else one["purpose"]]
        for one in found["votes"]
    ]  # fmt: skip
    trail = [[_when(line["at"]), line["actor"], line["action"]] for line in found["trail"]]
    return found["id"], conversation, answers, votes, trail


def _when(moment: datetime | None) -> str:
    return "" if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S")

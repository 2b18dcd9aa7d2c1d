"""The review desk's queues: how far each is and what it costs, and the form in which it is changed."""

from datetime import UTC, datetime
from typing import Any

import gradio as gr
from pydantic import ValidationError

from preference_ui.accounts.auth import Account
from preference_ui.labelling.vote_schema import storable
from preference_ui.quality.queue_progress import QueueProgress, queue_progress, votes_over_time
from preference_ui.store.errors import Refusal
from preference_ui.store.queue_settings import QueueSettings, change_queue, current_queue, require_queue_name
from preference_ui.store.settings import Criterion
from preference_ui.store.store import Store
from preference_ui.web.review.access import AT_ONCE, administrators_only

LIST = ["Queue", "State", "Priority", "Deadline (UTC)", "Raters", "Comparisons", "Complete", "Votes", "Votes an hour",
        "Time left", "Hours worked", "Cost"]  # fmt: skip
NO_SCORES = "none"
_EMPTY: tuple[Any, ...] = ("", "", "", 0, "", 0, None, True, "0")
Form = tuple[Any, ...]


def queues_tab(tab: gr.Tab, store: Store) -> None:
    """The tab's components and what they do."""
    desk = QueueTable(store)
    said = gr.Textbox(label="What was done", interactive=False, elem_id="queues-said")
    refresh = gr.Button("Refresh the queues")
    queues = gr.Dataframe(headers=LIST, datatype="str", interactive=False, wrap=True, label="Queues",
                          elem_id="queues")  # fmt: skip
    plot = gr.LinePlot(x="time", y="votes", color="queue", title="Votes over time", height=220, elem_id="votes-plot")
    gr.Markdown(
        "### One queue\n\nWhat is left empty is as the general settings say. Raters read changed guidelines again."
    )
    with gr.Row():
        name = gr.Textbox(label="Open queue, or name a new one", max_lines=1, elem_id="queue", submit_btn="Open")
        version = gr.Textbox(label="Version of its settings", interactive=False, elem_id="queue-version")
        is_open = gr.Checkbox(True, label="Open", elem_id="queue-open")
    guidelines = gr.Textbox(label="Guidelines (Markdown)", lines=5, max_lines=20, elem_id="queue-guidelines")
    criteria = gr.Textbox(label=f'Scores, one a line: name: what they mean; "{NO_SCORES}" for none', lines=2,
                          elem_id="queue-criteria")  # fmt: skip
    raters = gr.Textbox(label="Raters, by name, with commas between them (empty: everybody)", elem_id="queue-raters")
    with gr.Row():
        wanted = gr.Number(0, label="Votes wanted of each (0: as queued)", precision=0, minimum=0,
                           elem_id="queue-wanted")  # fmt: skip
        priority = gr.Number(0, label="Priority (the highest comes first)", precision=0, elem_id="queue-priority")
        deadline = gr.DateTime(label="Deadline (UTC)", type="datetime", timezone="UTC", elem_id="queue-deadline")
    with gr.Row():
        save = gr.Button("Save the queue", variant="primary")
        close, reopen = gr.Button("Close it"), gr.Button("Open it again")
    form = [name, guidelines, criteria, wanted, raters, priority, deadline, is_open, version]
    listed = [queues, plot]
    gr.on([tab.select, refresh.click], desk.table, None, [*listed, said], **AT_ONCE)
    queues.select(desk.choose, None, [*form, said], **AT_ONCE)
    name.submit(desk.form, [name], [*form, said], **AT_ONCE)
    save.click(desk.save, form, [*form, *listed, said], **AT_ONCE)
    close.click(desk.close, [name], [*form, *listed, said], **AT_ONCE)
    reopen.click(desk.reopen, [name], [*form, *listed, said], **AT_ONCE)


class QueueTable:
    """What the tab does."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def table(self, request: gr.Request) -> tuple[Any, ...]:
        """The queues, and their votes over time."""
        return administrators_only(request, lambda _account: (*self._listed(), ""), ([], None))

    def choose(self, event: gr.SelectData, request: gr.Request) -> Form:
        """The form of the queue whose row was clicked."""
        return self.form(str((event.row_value or [""])[0]), request)

    def form(self, name: str, request: gr.Request) -> Form:
        """The form of a queue by its name."""
        return administrators_only(request, lambda _account: (*self._form(_name(name)), ""), (name, *_EMPTY[1:]))

    def save(
        self, name: str, guidelines: str, criteria: str, wanted: float | None, raters: str, priority: float | None,
        deadline: datetime | None, is_open: bool, version: str, request: gr.Request,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Stores what the form says."""
        kept = (name, guidelines, criteria, wanted, raters, priority, deadline, is_open, version)

        def act(account: Account) -> tuple[Any, ...]:
            if not storable([name, guidelines, criteria, raters]):
                raise Refusal("malformed", "The form holds a character that cannot be stored.")
            body = {
                "guidelines": guidelines.strip() or None, "criteria": read_criteria(criteria or ""),
                "votes_wanted": int(wanted or 0) or None, "priority": int(priority or 0),
                "raters": tuple(one for one in (part.strip() for part in (raters or "").split(",")) if one),
                "deadline": deadline and (deadline if deadline.tzinfo else deadline.replace(tzinfo=UTC)),
                "open": bool(is_open),
            }  # fmt: skip
            seen = int(version) if str(version).isdigit() else 0
            change_queue(self.store, _name(name), _settings(body), author=account.name, seen=seen)
            return (*self._form(_name(name)), *self._listed(), "Saved.")

        return administrators_only(request, act, (*kept, *self._unlisted()))

    def close(self, name: str, request: gr.Request) -> tuple[Any, ...]:
        """Has the queue hand out nothing more."""
        return self._set_open(name, request, is_open=False)

    def reopen(self, name: str, request: gr.Request) -> tuple[Any, ...]:
        """Has the queue hand out its work again."""
        return self._set_open(name, request, is_open=True)

    def _set_open(self, name: str, request: gr.Request, *, is_open: bool) -> tuple[Any, ...]:
        def act(account: Account) -> tuple[Any, ...]:
            queue = _name(name)
            with self.store.read() as connection:
                settings = current_queue(connection, queue)[1]
            changed = settings.model_copy(update={"open": is_open})
            change_queue(self.store, queue, changed, author=account.name)
            return (*self._form(queue), *self._listed(), "It is open." if is_open else "It is closed.")

        return administrators_only(request, act, (name, *_EMPTY[1:], *self._unlisted()))

    def _form(self, queue: str) -> Form:
        with self.store.read() as connection:
            version, one = current_queue(connection, queue)
        return (queue, one.guidelines or "", write_criteria(one.criteria), one.votes_wanted or 0, ", ".join(one.raters),
                one.priority, one.deadline, one.open, str(version))  # fmt: skip

    def _listed(self) -> tuple[list[list[str]], dict[str, Any]]:
        points = [
            [int(moment.timestamp() * 1000), queue, count] for moment, queue, count in votes_over_time(self.store)
        ]
        types = {"time": "temporal", "queue": "nominal", "votes": "quantitative"}
        plot = {"columns": ["time", "queue", "votes"], "data": points, "datatypes": types, "mark": "line"}
        return [_row(one) for one in queue_progress(self.store)], plot

    def _unlisted(self) -> tuple[Any, Any]:
        return gr.skip(), gr.skip()


def read_criteria(text: str) -> tuple[Criterion, ...] | None:
    """Scores as they are written, one a line; None where nothing is written. Raises Refusal."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines == [NO_SCORES]:
        return ()
    try:
        parts = [line.partition(":") for line in lines]
        return tuple(Criterion(name=name.strip(), rubric=rubric.strip()) for name, _, rubric in parts) or None
    except ValidationError:
        sentence = 'Write a score as "name: what it means", with a name in small letters.'
        raise Refusal("criteria", sentence) from None


def write_criteria(criteria: tuple[Criterion, ...] | None) -> str:
    """Scores as :func:`read_criteria` reads them."""
    if criteria is None:
        return ""
    return "\n".join(f"{one.name}: {one.rubric}" for one in criteria) or NO_SCORES


def _settings(body: dict[str, Any]) -> QueueSettings:
    try:
        return QueueSettings.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise Refusal("queue", f"{first['loc'][0] if first['loc'] else 'queue'}: {first['msg']}") from None


def _name(name: Any) -> str:
    queue = str(name or "").strip()
    require_queue_name(queue)
    return queue


def _row(one: QueueProgress) -> list[str]:
    left = "–" if one.hours_left is None else duration(one.hours_left)
    deadline = one.deadline.strftime("%Y-%m-%d %H:%M") if one.deadline else ""
    cost = "" if one.cost is None else f"{one.cost:.2f}"
    numbers = [str(one.comparisons), str(one.complete), f"{one.given} of {one.wanted}", f"{one.an_hour:.1f}"]
    who = ", ".join(one.raters) or "everybody"
    return [one.queue, one.state, str(one.priority), deadline, who, *numbers, left, f"{one.hours_worked:.2f}", cost]


def duration(hours: float) -> str:
    """Hours as a person says them."""
    if hours < 1:
        return f"{round(hours * 60)} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"

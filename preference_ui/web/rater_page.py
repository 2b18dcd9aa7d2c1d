"""The rater's page. Every function that the browser can call checks who calls, and answers with data or a sentence.

What goes to the browser about a comparison is listed in :func:`_screen` and nowhere else: no model's name, no id of an
answer or a comparison, and nothing that tells gold from work.
"""

import logging
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import gradio as gr

from preference_ui.accounts import accounts
from preference_ui.accounts.auth import Account
from preference_ui.accounts.links import completion_of
from preference_ui.labelling.assignment import Lease, next_lease
from preference_ui.labelling.consent import answer_before_work, asked_before_work
from preference_ui.labelling.guidelines import has_read, queue_guidelines, queue_was_read
from preference_ui.labelling.qualification import missed_mark
from preference_ui.labelling.rater_progress import ProgressBook
from preference_ui.labelling.revision import leave, own_votes, reopen, reopen_earlier
from preference_ui.labelling.vote_schema import FLAG_REASONS, SKIP_REASONS
from preference_ui.labelling.voting import cast_and_draw, read_draft, read_wire, save_draft
from preference_ui.store.errors import Refusal
from preference_ui.store.store import Store, StoreError
from preference_ui.web.languages import translate
from preference_ui.web.middleware import UNAVAILABLE, account_in
from preference_ui.web.rendering import to_html

_log = logging.getLogger(__name__)
Answer = dict[str, Any]
MALFORMED = "This request could not be read. Please reload the page and try again."


def rater_page(store: Store, *, arena: bool = False) -> gr.Blocks:
    """The page where comparisons are voted on; it leads to the arena where there is one."""
    with gr.Blocks(title="Which answer is better?", analytics_enabled=False) as page:
        script = files("preference_ui").joinpath("widgets/rater.js").read_text("utf-8")
        gr.HTML(
            html_template="<div class='desk' id='desk'></div>",
            js_on_load=script,
            apply_default_css=False,
            server_functions=RaterHandlers(store, arena=arena).functions(),
        )
    return page


class RaterHandlers:
    """What the rater's browser can ask for."""

    def __init__(self, store: Store, *, arena: bool = False) -> None:
        self.store = store
        self.arena = arena
        self.progress = ProgressBook(store)

    def functions(self) -> list[Callable[..., Any]]:
        """The handlers, under the names that the browser calls them by."""

        def begin(data: Any, request: gr.Request) -> Answer:
            return answer(request, lambda account: self._begin(account, data))

        def vote(data: Any, request: gr.Request) -> Answer:
            return answer(request, lambda account: self._vote(account, data))

        def undo(_data: Any, request: gr.Request) -> Answer:
            return answer(request, self._undo)

        def draft(data: Any, request: gr.Request) -> Answer:
            return answer(request, lambda account: self._draft(account, data))

        def read_guidelines(data: Any, request: gr.Request) -> Answer:
            return answer(request, lambda account: self._read_guidelines(account, data))

        def read_queue(data: Any, request: gr.Request) -> Answer:
            return answer(request, lambda account: self._read_queue(account, data))

        def consent(data: Any, request: gr.Request) -> Answer:
            return answer(request, lambda account: self._consent(account, data))

        def history(data: Any, request: gr.Request) -> Answer:
            return answer(request, lambda account: self._history(account, data))

        def revise(data: Any, request: gr.Request) -> Answer:
            return answer(request, lambda account: self._revise(account, data))

        def step_back(data: Any, request: gr.Request) -> Answer:
            return answer(request, lambda account: self._step_back(account, data))

        def leave_vote(data: Any, request: gr.Request) -> Answer:
            return answer(request, lambda account: self._leave(account, data))

        return [begin, vote, undo, draft, read_guidelines, read_queue, consent, history, revise, step_back, leave_vote]

    def _begin(self, account: Account, data: Any = None) -> Answer:
        language = "en" if data is None else fields(data, "language")["language"]
        version, settings = self.store.settings()
        guidelines = translate(language if isinstance(language, str) else "en", settings.guidelines)
        about = {
            "name": account.name,
            "administrator": account.is_administrator,
            "arena": self.arena,
            "guidelines": {"html": to_html(guidelines), "version": version},
            "criteria": [criterion.model_dump() for criterion in settings.criteria],
            "reasons": {"skip": SKIP_REASONS, "flag": FLAG_REASONS},
        }
        asked = asked_before_work(self.store, account.id)
        if asked is not None:
            text = asked.pop("text")
            return about | {"must_read": False, "screen": None, "asked": asked | {"html": to_html(text)}}
        lease = next_lease(self.store, account.id)
        own = lease is not None and lease.purpose != "trial" and self._queue(account, lease)["guidelines"] is not None
        if not own and not has_read(self.store, account.guidelines_read, version, settings.guidelines):
            return about | {"must_read": True, "screen": None}
        return about | {"must_read": False, "screen": self._show(account, lease)}

    def _vote(self, account: Account, data: Any) -> Answer:
        sent = fields(data, "lease", "verdict")
        receipt, lease = cast_and_draw(self.store, account.id, sent["lease"], sent["verdict"])
        return {"feedback": receipt.feedback, "repeated": receipt.repeated, "screen": self._show(account, lease)}

    def _undo(self, account: Account) -> Answer:
        return {"screen": self._screen(account, reopen(self.store, account.id))}

    def _history(self, account: Account, data: Any) -> Answer:
        return {"votes": own_votes(self.store, account.id, fields(data, "before")["before"])}

    def _revise(self, account: Account, data: Any) -> Answer:
        vote = fields(data, "vote")["vote"]
        if not isinstance(vote, str):
            raise Refusal("malformed", MALFORMED)
        return {"screen": self._screen(account, reopen(self.store, account.id, vote))}

    def _step_back(self, account: Account, data: Any) -> Answer:
        lease = fields(data, "lease")["lease"]
        return {"screen": self._screen(account, reopen_earlier(self.store, account.id, lease))}

    def _leave(self, account: Account, data: Any) -> Answer:
        leave(self.store, account.id, fields(data, "lease")["lease"])
        return {"screen": self._next(account)}

    def _draft(self, account: Account, data: Any) -> Answer:
        sent = fields(data, "lease", "draft")
        save_draft(self.store, account.id, sent["lease"], sent["draft"])
        return {}

    def _read_guidelines(self, account: Account, data: Any) -> Answer:
        version = fields(data, "version")["version"]
        current, _ = self.store.settings()
        if type(version) is not int or version != current:
            raise Refusal("malformed", "The guidelines have changed meanwhile. Please reload the page.")
        accounts.guidelines_were_read(self.store, account.id, version)
        return {"screen": self._next(account)}

    def _consent(self, account: Account, data: Any) -> Answer:
        sent = fields(data, "digest", "agreed", "answers")
        answer_before_work(self.store, account.id, sent["digest"], sent["agreed"], sent["answers"])
        return {}

    def _read_queue(self, account: Account, data: Any) -> Answer:
        sent = fields(data, "queue", "digest")
        if not all(isinstance(one, str) and len(one) <= 64 for one in sent.values()):
            raise Refusal("malformed", MALFORMED)
        queue_was_read(self.store, account.id, sent["queue"], sent["digest"])
        return {"screen": self._next(account)}

    def _next(self, account: Account) -> Answer:
        return self._show(account, next_lease(self.store, account.id))

    def _show(self, account: Account, lease: Lease | None) -> Answer:
        if lease is None:
            done = self.progress.of(account.id) | {"left": 0, "minutes": None}
            completion = completion_of(self.store, account.id) if done["done"] else None
            missed = missed_mark(self.store, account.id)
            return {"lease": None, "progress": done, "missed": missed, "completion": completion}
        return self._screen(account, lease)

    def _queue(self, account: Account, lease: Lease) -> Answer:
        """What the rater sees of the queue. Its comparisons are shown once its own guidelines are read."""
        found = queue_guidelines(self.store, account.id, lease.queue)
        text, criteria = found.settings.guidelines, found.settings.criteria
        return {
            "name": lease.queue,
            "guidelines": None if text is None else {"html": to_html(text), "digest": found.digest},
            "criteria": None if criteria is None else [criterion.model_dump() for criterion in criteria],
            "must_read": not found.read,
            "single": found.settings.single,
            "labels": [label.model_dump() for label in found.settings.labels],
        }

    def _screen(self, account: Account, lease: Lease) -> Answer:
        queue = None if lease.purpose == "trial" else self._queue(account, lease)
        if queue is not None and queue["must_read"]:
            return {"lease": lease.id, "queue": queue, "progress": self.progress.of(account.id)}
        by_id = {response.id: response for response in lease.comparison.responses}
        return {
            "lease": lease.id,
            "queue": queue,
            "trial": lease.purpose == "trial",
            "undoing": lease.revises is not None,
            "was": None if lease.revises is None else read_wire(self.store, lease.revises),
            "prompt": [
                {"role": turn.role, "html": to_html(turn.content), "text": turn.content}
                for turn in lease.comparison.prompt.messages
            ],
            "answers": [
                {
                    "html": to_html(by_id[one].text),
                    "text": by_id[one].text,
                    "names_itself": one in lease.self_naming,
                    "cut": not by_id[one].finished,
                }
                for one in lease.order
            ],
            "draft": None if lease.fresh else read_draft(self.store, lease.id, lease.revises),
            "progress": self.progress.of(account.id),
        }


def answer(request: gr.Request, act: Callable[[Account], Answer], *, administrator: bool = False) -> Answer:
    """Runs a handler for whoever the guard let in, and turns what goes wrong into a sentence.

    ``request`` is the raw request here (Gradio passes it so to a component's own functions); the account comes from the
    session's cookie alone, never from a session hash or the body.
    """
    account = account_in(request.scope)
    if account is None:
        return {"ok": False, "code": "signed_out", "say": "Please sign in again."}
    if administrator and not account.is_administrator:
        return {"ok": False, "code": "forbidden", "say": "This is for administrators."}
    try:
        return {"ok": True} | act(account)
    except Refusal as refusal:
        return {"ok": False, "code": refusal.code, "say": refusal.sentence}
    except StoreError as error:
        _log.warning("the store failed: %s", error)
        return {"ok": False, "code": "unavailable", "say": UNAVAILABLE}
    except Exception:  # a fault of ours: it goes into the log, and the rater is told that nothing was done
        _log.exception("a handler failed")
        return {"ok": False, "code": "failed", "say": "Something went wrong here, and nothing was changed."}


def fields(data: Any, *names: str) -> dict[str, Any]:
    """Exactly these fields of what was sent. Raises Refusal for anything else."""
    if not isinstance(data, dict) or set(data) != set(names):
        raise Refusal("malformed", MALFORMED)
    return data

"""The administrator's page: how good the votes are, who the raters are, and what they are asked."""

from collections.abc import Callable
from importlib.resources import files
from typing import Any

import gradio as gr
from pydantic import ValidationError

from preference_ui.accounts import accounts
from preference_ui.accounts.auth import Account, sign_out_everywhere
from preference_ui.arena.votes import count_matches
from preference_ui.labelling.assignment import open_leases
from preference_ui.labelling.exclusion import exclude_rater, include_rater
from preference_ui.labelling.queue import waiting
from preference_ui.labelling.vote_schema import storable
from preference_ui.quality.quality_book import QualityBook
from preference_ui.store.errors import Refusal
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store
from preference_ui.web.rater_page import Answer, answer, fields


def administrator_page(store: Store) -> gr.Blocks:
    """The page of figures and people."""
    with gr.Blocks(title="Administration", analytics_enabled=False) as page:
        script = files("preference_ui").joinpath("widgets/administrator.js").read_text("utf-8")
        gr.HTML(
            html_template="<div class='desk' id='administration'></div>",
            js_on_load=script,
            apply_default_css=False,
            server_functions=AdministratorHandlers(store).functions(),
        )
    return page


class AdministratorHandlers:
    """What an administrator's browser can ask for. Each checks the role again, whatever page it is called through."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.quality = QualityBook(store)

    def functions(self) -> list[Callable[..., Any]]:
        """The handlers, under the names that the browser calls them by."""

        def overview(_data: Any, request: gr.Request) -> Answer:
            return answer(request, lambda _: self._overview(), administrator=True)

        def set_state(data: Any, request: gr.Request) -> Answer:
            return answer(request, lambda account: self._set_state(account, data), administrator=True)

        def set_excluded(data: Any, request: gr.Request) -> Answer:
            return answer(request, lambda account: self._set_excluded(account, data), administrator=True)

        def invite(data: Any, request: gr.Request) -> Answer:
            return answer(request, lambda account: self._invite(account, data), administrator=True)

        def save_settings(data: Any, request: gr.Request) -> Answer:
            return answer(request, lambda account: self._save_settings(account, data), administrator=True)

        def sign_out_account(data: Any, request: gr.Request) -> Answer:
            return answer(request, lambda account: self._sign_out(account, data), administrator=True)

        return [overview, set_state, set_excluded, invite, save_settings, sign_out_account]

    def _overview(self) -> Answer:
        version, settings = self.store.settings()
        trail = [{**line, "at": line["at"].isoformat(timespec="seconds")} for line in self.store.audit_trail(limit=60)]
        people = [
            {**one, "created": one["created"].isoformat(timespec="seconds")} for one in accounts.people(self.store)
        ]
        report, renewing = self.quality.now()
        return {
            "quality": None if report is None else report.model_dump(mode="json"),
            "renewing": renewing,
            "people": people,
            "matches": [match.model_dump(mode="json") for match in count_matches(self.store)],
            "waiting": waiting(self.store),
            "in_hand": open_leases(self.store),
            "settings": settings.model_dump(mode="json"),
            "version": version,
            "trail": trail,
        }

    def _set_state(self, account: Account, data: Any) -> Answer:
        sent = _texts(fields(data, "account", "state", "reason"))
        accounts.change_state(self.store, sent["account"], sent["state"], actor=account.name, reason=sent["reason"])
        return {}

    def _set_excluded(self, account: Account, data: Any) -> Answer:
        sent = fields(data, "account", "excluded", "reason")
        texts = _texts({"account": sent["account"], "reason": sent["reason"]})
        if sent["excluded"] is True:
            return {"changed": exclude_rater(self.store, texts["account"], actor=account.name, reason=texts["reason"])}
        return {"changed": include_rater(self.store, texts["account"], actor=account.name)}

    def _invite(self, account: Account, data: Any) -> Answer:
        sent = _texts(fields(data, "role", "note"))
        if sent["role"] not in ("rater", "administrator"):
            raise Refusal("malformed", "An invitation is for a rater or an administrator.")
        role: Any = sent["role"]
        return {"path": f"/invite/{accounts.invite(self.store, role, created_by=account.name, note=sent['note'])}"}

    def _save_settings(self, account: Account, data: Any) -> Answer:
        body = fields(data, "settings")["settings"]
        try:
            if not storable(body):
                raise Refusal("malformed", "The settings hold a character that cannot be stored.")
            settings = DeskSettings.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise Refusal("settings", f"{where}: {first['msg']}") from None
        return {"version": self.store.change_settings(settings, author=account.name)}

    def _sign_out(self, account: Account, data: Any) -> Answer:
        target = _texts(fields(data, "account"))["account"]
        return {"closed": sign_out_everywhere(self.store, target, actor=account.name)}


def _texts(sent: dict[str, Any]) -> dict[str, str]:
    if not all(isinstance(value, str) and len(value) <= 500 and storable(value) for value in sent.values()):
        raise Refusal("malformed", "This request could not be read. Please reload the page and try again.")
    return sent

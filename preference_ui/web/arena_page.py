"""The arena's page. What goes to the browser about a talk is listed in :func:`_screen` and nowhere else; the versions'
names are among it only where the talk was voted on."""

import asyncio
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import anyio.to_thread
import gradio as gr

from preference_ui.accounts.auth import Account
from preference_ui.arena.responders import Speakers
from preference_ui.arena.talks import MAX_SAID, MAX_TURNS, Talk, leave_talk, own_talk, say, talk_in_hand, vote_on_talk
from preference_ui.labelling.identity_leaks import names_itself
from preference_ui.store.errors import Refusal
from preference_ui.store.store import Store
from preference_ui.web.rater_page import Answer, answer, fields
from preference_ui.web.rendering import to_html

_LOOK_SECONDS = 0.08  # how often a waiting request looks for new words
_LOOKS = 100  # before it answers that there are none
_NOTHING_NEW: Answer = {"nothing_new": True}


def arena_page(store: Store, speakers: Speakers) -> gr.Blocks:
    """The page where two versions are talked to."""
    with gr.Blocks(title="Two answers at once", analytics_enabled=False) as page:
        script = files("preference_ui").joinpath("widgets/arena.js").read_text("utf-8")
        gr.HTML(
            html_template="<div class='desk' id='arena'></div>",
            js_on_load=script,
            apply_default_css=False,
            server_functions=ArenaHandlers(store, speakers).functions(),
        )
    return page


class ArenaHandlers:
    """What the browser of somebody in the arena can ask for."""

    def __init__(self, store: Store, speakers: Speakers) -> None:
        self.store = store
        self.speakers = speakers

    def functions(self) -> list[Callable[..., Any]]:
        """The handlers, under the names that the browser calls them by."""

        def enter(_data: Any, request: gr.Request) -> Answer:
            return answer(request, self._enter)

        def tell(data: Any, request: gr.Request) -> Answer:
            return answer(request, lambda account: self._say(account, data))

        async def listen(data: Any, request: gr.Request) -> Answer:
            return await self._listen(request, data)

        def judge(data: Any, request: gr.Request) -> Answer:
            return answer(request, lambda account: self._vote(account, data))

        def leave(data: Any, request: gr.Request) -> Answer:
            return answer(request, lambda account: self._leave(account, data))

        return [enter, tell, listen, judge, leave]

    def _enter(self, account: Account) -> Answer:
        talk = talk_in_hand(self.store, account.id, self.speakers.contestants)
        if talk.unanswered:
            self.speakers.begin(talk)
        limits = {"characters": MAX_SAID, "turns": MAX_TURNS}
        return {"name": account.name, "administrator": account.is_administrator, "limits": limits} | _screen(talk)

    def _say(self, account: Account, data: Any) -> Answer:
        sent = fields(data, "talk", "text")
        talk = say(self.store, account.id, sent["talk"], sent["text"])
        try:
            self.speakers.begin(talk)
        except Refusal:
            self.speakers.take_back(talk)
            raise
        return _screen(talk)

    def _vote(self, account: Account, data: Any) -> Answer:
        sent = fields(data, "talk", "vote")
        return _screen(vote_on_talk(self.store, account.id, sent["talk"], sent["vote"]))

    def _leave(self, account: Account, data: Any) -> Answer:
        leave_talk(self.store, account.id, fields(data, "talk")["talk"])
        return self._enter(account)

    async def _listen(self, request: gr.Request, data: Any) -> Answer:
        """Answers once there are more words than the browser has heard, or a while later: no thread waits."""
        reply = _NOTHING_NEW
        for _ in range(_LOOKS):
            reply = answer(request, lambda account: self._heard(account, data))
            if "nothing_new" not in reply:
                break
            await asyncio.sleep(_LOOK_SECONDS)
        if reply.get("ended"):
            return await anyio.to_thread.run_sync(answer, request, lambda account: self._ended(account, data))
        if "texts" in reply:  # to make pages of them takes its time: nobody else is to wait for it
            return await anyio.to_thread.run_sync(answer, request, lambda _account: _live(reply))
        return reply

    def _heard(self, account: Account, data: Any) -> Answer:
        """What is new of the answers on their way; looks at memory alone."""
        sent = fields(data, "talk", "heard")
        talk, heard = sent["talk"], sent["heard"]
        live = self.speakers.live(talk) if isinstance(talk, str) else None
        if type(heard) is not int or (live is not None and live.account_id != account.id):
            raise Refusal("no_talk", "This talk is not yours. Please reload the page.")
        if live is None:
            return {"ended": True}
        return _NOTHING_NEW if live.heard == heard else {"heard": live.heard, "texts": list(live.texts)}

    def _ended(self, account: Account, data: Any) -> Answer:
        talk = own_talk(self.store, account.id, data["talk"])
        problem = self.speakers.problem(talk.id)
        if problem:
            return _screen(talk) | {"problem": problem}
        if talk.unanswered and talk.state == "open":  # the app died in between
            self.speakers.begin(talk)
        return _screen(talk)


def _live(heard: Answer) -> Answer:
    shown = [{"html": to_html.__wrapped__(text), "names_itself": names_itself(text)} for text in heard["texts"]]
    return {"heard": heard["heard"], "answers": shown}


def _screen(talk: Talk) -> Answer:
    return {
        "talk": talk.id,
        "over": talk.state != "open",
        "waiting": talk.unanswered,
        "turns": [
            {
                "said": to_html(turn["said"]),
                "answers": None
                if turn["answers"] is None
                else [{"html": to_html(text), "names_itself": names_itself(text)} for text in turn["answers"]],
            }
            for turn in talk.turns
        ],
        "names": [name for name, _digest in talk.versions] if talk.state == "voted" else None,
    }

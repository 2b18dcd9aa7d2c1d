"""Answers while they are made. Both versions speak in step, piece by piece, so that speed does not say who is who.

What has been said so far is kept in memory only; a turn is stored when both answers are whole. An app that died in
between makes them again, with the same seed.
"""

import itertools
import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from preference_ui.arena.talks import Contestant, Talk, settle_turn
from preference_ui.store.errors import Refusal
from preference_ui.store.store import Store, StoreError

AT_ONCE = 2  # talks that are answered side by side; the others wait
MOST_WAITING = 50
SORRY = "No answer could be made. Your message was taken back; please try again, or say it in another way."
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class LiveTurn:
    """Two answers on their way. ``heard`` counts the pieces, so that a browser can ask for what is new."""

    talk_id: str
    account_id: str
    texts: list[str] = field(default_factory=lambda: ["", ""])
    finished: list[bool] = field(default_factory=lambda: [True, True])
    heard: int = 0


class Speakers:
    """Lets the contestants answer, ``AT_ONCE`` talks at a time."""

    def __init__(self, store: Store, contestants: Sequence[Contestant]) -> None:
        self.store = store
        self.contestants = list(contestants)
        self._by_version = {(one.name, one.digest): one for one in contestants}
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="arena")
        self._lock = threading.Lock()
        self._live: dict[str, LiveTurn] = {}
        self._problems: dict[str, str] = {}
        self._closing = threading.Event()

    def begin(self, talk: Talk) -> LiveTurn:
        """Starts to answer a talk's last message, unless that is under way. Raises Refusal where too many wait."""
        with self._lock:
            found = self._live.get(talk.id)
            if found is not None:
                return found
            if len(self._live) >= MOST_WAITING:
                raise Refusal("crowded", "Many people are talking just now. Please try again in a minute.")
            live = self._live[talk.id] = LiveTurn(talk.id, talk.account_id)
        self._pool.submit(self._answer, talk, live)
        return live

    def live(self, talk_id: str) -> LiveTurn | None:
        """The answers on their way in a talk."""
        with self._lock:
            return self._live.get(talk_id)

    def problem(self, talk_id: str) -> str:
        """Why the newest turn of a talk was taken back, told once; empty where it was not."""
        with self._lock:
            return self._problems.pop(talk_id, "")

    def take_back(self, talk: Talk) -> None:
        """Forgets a message that nobody will answer."""
        settle_turn(self.store, talk.id, len(talk.turns) - 1, None)

    def close(self) -> None:
        """Ends what waits; what is under way is made again after the next start."""
        self._closing.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, talk: Talk, live: LiveTurn) -> None:
        at = len(talk.turns) - 1
        try:
            if self._speak(talk, live, at):
                settle_turn(self.store, talk.id, at, live.texts, live.finished)
        except Exception as error:  # whatever a model does wrong, the talk must go on
            if not isinstance(error, Refusal):
                _log.exception("a turn of the arena failed")
            self._give_up(talk, str(error) if isinstance(error, Refusal) else SORRY)
        finally:
            with self._lock:
                del self._live[talk.id]

    def _give_up(self, talk: Talk, problem: str) -> None:
        with self._lock:
            self._problems[talk.id] = problem
        try:
            self.take_back(talk)
        except StoreError:
            _log.exception("a turn of the arena could not be taken back")

    def _speak(self, talk: Talk, live: LiveTurn, at: int) -> bool:
        """Lets both speak in step. Says whether they came to their ends."""

        def told(side: int, version: tuple[str, str]) -> Iterator[str]:
            answer: Any = self._by_version[version].answer(talk.messages(side), talk.seed + 2 * at + side)
            live.finished[side] = (yield from answer) is not False

        streams = [told(side, version) for side, version in enumerate(talk.versions)]
        for texts in itertools.zip_longest(*streams):
            if self._closing.is_set():
                return False
            for side, text in enumerate(texts):
                if text is not None:
                    live.texts[side] = text
            live.heard += 1
        return True

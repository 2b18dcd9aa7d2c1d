"""An OpenAI-compatible endpoint as who answers: bounded in time, rate and money, and trusted in nothing.

Failures that may pass (no connection, no answer in time, 408, 409, 425, 429, 5xx, and a 200 that holds no completion:
HTML, cut-off JSON) are tried again with growing waits, or after the wait that ``Retry-After`` asks for. A question
that still fails has no answer. After ``GIVE_UP`` such questions in a row, or at once for what no wait mends (401, 404),
the stage ends; what was paid for is kept. The key is read from its environment variable when it is needed.
"""

import asyncio
import email.utils
import json
import os
import random
import time
from collections.abc import Sequence
from typing import Any

import httpx

from alignment.errors import StageError
from alignment.judges.answer_cache import Answers, Kept, Ledger
from alignment.judges.llm_judge import Reply, Wording
from alignment.judges.prompts import JudgePrompt
from alignment.judges.protocol import JudgeUsage
from alignment.recipe.judges import Endpoint, ModelServer

PASSES = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # statuses worth a second attempt
GIVE_UP = 5  # questions in a row without an answer
FIRST_WAIT = 0.5  # seconds before the first retry; doubles
LARGEST = 4 * 2**20  # bytes of a response that are read
SHOWN = 200  # characters of a server's own words in a message


class AttemptError(Exception):
    """One attempt gave no answer; ``wait`` is how long the server asks to wait, in seconds."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class EndpointAsker:
    """Asks an endpoint, at most ``concurrency`` questions at a time."""

    path = "/chat/completions"

    def __init__(
        self,
        settings: Wording,
        endpoint: ModelServer,
        answers: Answers,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.settings, self.endpoint, self.answers, self.transport = settings, endpoint, answers, transport
        self.tally = JudgeUsage()
        self.ledger = Ledger(endpoint.budget, endpoint.price, self.tally)
        self._next_start = 0.0  # of the monotonic clock: when the rate allows the next attempt
        self._failed_in_a_row = 0
        self._spent = False
        self._over = False  # the stage has ended: nothing further is asked

    async def ask(self, questions: Sequence[JudgePrompt], /) -> list[Reply]:
        """One reply for each question. Raises StageError where the endpoint cannot be used, or the budget is spent."""
        slots = asyncio.Semaphore(self.endpoint.concurrency)
        distinct: dict[str, dict[str, Any]] = {}
        keys = []
        for question in questions:
            body = self._body(question)
            keys.append(json.dumps(body, sort_keys=True))
            distinct[keys[-1]] = body
        self.tally.asked += len(distinct)
        timeout = httpx.Timeout(self.endpoint.timeout)
        async with httpx.AsyncClient(timeout=timeout, transport=self.transport, headers=self._headers()) as client:
            tasks = {key: asyncio.ensure_future(self._one(client, slots, body)) for key, body in distinct.items()}
            done = dict(zip(tasks, await asyncio.gather(*tasks.values(), return_exceptions=True), strict=True))
        for result in done.values():
            if isinstance(result, BaseException):
                raise result
        if self._spent and self._stops_when_spent():
            raise StageError(self._budget_message())
        return [reply for key in keys if isinstance(reply := done[key], Reply)]

    async def _one(self, client: httpx.AsyncClient, slots: asyncio.Semaphore, body: dict[str, Any]) -> Reply:
        sent = {"url": self.endpoint.url, **body}
        kept = self.answers.find(sent)
        if kept is not None:
            if not self.ledger.affords(kept.prompt_tokens + kept.answer_tokens, kept.money):
                self._spent = True
                return Reply(None, "unasked")
            self.ledger.spend(kept, now=False)
            return Reply(kept.text, finished=kept.finished, tokens=kept.answer_tokens)
        async with slots:
            estimate = self.ledger.estimate(json.dumps(body["messages"]), self.settings.max_tokens)
            if self._over:
                return Reply(None, "unasked")
            if self._spent or not self.ledger.set_aside(*estimate):
                self._spent = True
                return Reply(None, "unasked")
            try:
                kept = await self._persistently(client, body)
            except StageError:
                self._over = True
                raise
            finally:
                self.ledger.release(*estimate)
            if kept is None:
                return Reply(None, "failed")
            self.ledger.spend(kept, now=True)
            self.answers.keep(sent, kept)
            return Reply(kept.text, finished=kept.finished, tokens=kept.answer_tokens)

    async def _persistently(self, client: httpx.AsyncClient, body: dict[str, Any]) -> Kept | None:
        """The answer, after as many attempts as are allowed; None where none of them gave one."""
        problem = ""
        for attempt in range(self.endpoint.retries + 1):
            if self._failed_in_a_row >= GIVE_UP:
                break
            await self._turn()
            try:
                kept = await self._attempt(client, body)
            except AttemptError as failure:
                problem = str(failure)
                if attempt < self.endpoint.retries:
                    self.tally.retries += 1
                    await asyncio.sleep(self._wait(attempt, failure.wait))
                continue
            self._failed_in_a_row = 0
            return kept
        self.tally.failed += 1
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= GIVE_UP:
            raise StageError(
                f"the endpoint {self.endpoint.url} gave no answer to {GIVE_UP} questions in a row, each asked "
                f"{self.endpoint.retries + 1} times ({problem or 'as before'}); what was answered is kept: run again "
                "when it is up"
            )
        return None

    def _wait(self, attempt: int, asked: float | None) -> float:
        """Seconds before the next attempt: what the server asks for, else twice as long each time, up to a bound."""
        usual = FIRST_WAIT * 2**attempt * random.uniform(0.75, 1.25)  # apart, so that not all come back at once
        return min(usual if asked is None else asked, self.endpoint.max_wait)

    async def _turn(self) -> None:
        """Waits until the rate allows another attempt."""
        if self.endpoint.requests_per_minute is None:
            return
        now = time.monotonic()
        start = max(now, self._next_start)
        self._next_start = start + 60 / self.endpoint.requests_per_minute
        await asyncio.sleep(start - now)

    async def _attempt(self, client: httpx.AsyncClient, body: dict[str, Any]) -> Kept:
        """Raises AttemptError where another attempt may help, StageError where none will."""
        url = self.endpoint.url.rstrip("/") + self.path
        try:
            # httpx bounds each read; a server that sends a byte now and then is bounded here.
            async with asyncio.timeout(self.endpoint.timeout), client.stream("POST", url, json=body) as response:
                content = await _read(response)
        except TimeoutError:
            raise AttemptError(f"no answer within {self.endpoint.timeout:g} s") from None
        except httpx.HTTPError as error:
            raise AttemptError(f"{type(error).__name__}: {self._redacted(str(error))}") from None
        if response.status_code in PASSES:
            raise AttemptError(f"status {response.status_code}", _retry_after(response.headers.get("retry-after")))
        if response.status_code != 200:
            words = self._redacted(content.decode("utf-8", "replace"))
            raise StageError(f"the endpoint {url} answered {response.status_code}: {words}")
        return self._completion(content, body)

    def _completion(self, content: bytes, body: dict[str, Any]) -> Kept:
        try:
            answer = json.loads(content)
            text = answer["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise AttemptError(
                f"status 200, but no completion: {self._redacted(content.decode('utf-8', 'replace'))}"
            ) from None
        if text is None:
            text = ""  # a refusal, or nothing: it was paid for, and parses as nothing
        if not isinstance(text, str):
            raise AttemptError("status 200, but the completion is no text")
        usage = answer.get("usage")
        guess = self.ledger.estimate(json.dumps(body["messages"]), len(text.encode()) // 3 + 1)
        used = [
            value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else guess[place]
            for place, name in enumerate(("prompt_tokens", "completion_tokens"))
            for value in [usage.get(name) if isinstance(usage, dict) else None]
        ]
        cut_off = answer["choices"][0].get("finish_reason") == "length"
        return Kept(
            text=text, prompt_tokens=used[0], answer_tokens=used[1], money=self.ledger.cost(*used), finished=not cut_off
        )

    def _body(self, question: JudgePrompt) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": [message.model_dump() for message in question.messages],
            "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_tokens,
        }
        if isinstance(self.endpoint, Endpoint) and self.endpoint.json_schema and question.schema is not None:
            schema = {"name": "answer", "strict": True, "schema": question.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def _key(self) -> str:
        return os.environ.get(self.endpoint.api_key_env, "").strip() if self.endpoint.api_key_env else ""

    def _headers(self) -> dict[str, str]:
        if self.endpoint.api_key_env is None:
            return {}
        key = self._key()
        if not key or not key.isascii() or not key.isprintable():
            what = "is not set" if not key else "holds no key: it has characters that no header may have"
            raise StageError(
                f"the environment variable {self.endpoint.api_key_env} {what}; it names the endpoint's key"
            )
        return {"Authorization": f"Bearer {key}"}

    def _redacted(self, text: str) -> str:
        """A server's words for a message: short, in one line, without the key should it have been sent back."""
        key = self._key()
        return " ".join((text.replace(key, "…") if key else text).split())[:SHOWN]

    def _budget_message(self) -> str:
        budget = self.endpoint.budget
        bound = [f"{budget.tokens:,} tokens"] if budget and budget.tokens else []
        bound += [f"{budget.money:g} in money"] if budget and budget.money else []
        spent = self.tally.prompt_tokens + self.tally.answer_tokens
        return (
            f"the endpoint's budget of {' and '.join(bound)} is spent: {spent:,} tokens, {self.tally.money:.4g} in "
            "money; every answer that was paid for is kept and costs nothing again: raise endpoint.budget and run again"
            + self._without_the_rest()
        )

    def _stops_when_spent(self) -> bool:
        return not isinstance(self.endpoint, Endpoint) or self.endpoint.when_spent == "stop"

    def _without_the_rest(self) -> str:
        """How to go on without the answers that there is no money for, where that can be done."""
        if not isinstance(self.endpoint, Endpoint):
            return ""
        return ", or set endpoint.when_spent to use, and go on with the pairs that were judged"


async def _read(response: httpx.Response) -> bytes:
    """A response's body, as far as it is of a sensible size."""
    parts, size = [], 0
    async for part in response.aiter_bytes():
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            raise AttemptError(f"more than {LARGEST} bytes")
    return b"".join(parts)


def _retry_after(value: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for (a number, or a date); None where it asks for nothing."""
    if value is None:
        return None
    try:
        return max(0.0, min(float(value), 1e9)) if float(value) == float(value) else None
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None

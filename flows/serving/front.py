"""What clients talk to: asks for the key, passes requests on to the version's server, and says which version answered.

The interface itself is the server's (``transformers serve``). Passed on is what answers prompts; what would load other
models, or unload this one, is not.
"""

import asyncio
import hmac
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from flows.serving.prompt_log import PromptLog
from flows.serving.switchboard import Switchboard, UnavailableError
from flows.serving.version_server import VersionServer

PATHS = ("/v1/chat/completions", "/v1/completions")
MOST_BYTES = 8 * 2**20  # of a request
TRIES = 2  # of a request whose server died before it said a word
PASSED_ON = ("content-type", "x-request-id")  # of an answer's headers
VERSION, DIGEST = "X-RLHF-Version", "X-RLHF-Digest"
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")
_log = logging.getLogger(__name__)
Scope = MutableMapping[str, Any]


@dataclass(frozen=True, slots=True)
class AccessRule:
    """Who may come in: whoever sends the ``key``; without one, whoever names this machine as one of ``hosts``.

    A page of another site that a browser here shows sends no JSON without asking first, and names another host.
    """

    key: str | None
    hosts: Sequence[str] = LOCAL_NAMES

    def refusal(self, request: Request) -> Response | None:
        """The answer to who may not."""
        if self.key is not None:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.key.encode()):
                return _error(401, "a wrong key, or none: send Authorization: Bearer KEY", "invalid_api_key")
        elif (request.url.hostname or "") not in self.hosts:
            return _error(403, "without a key this server is for this machine alone", "forbidden")
        return None


@dataclass(slots=True)
class ActiveRequest:
    """What one request holds until it is answered, or its client has gone: a server, and that server's answer."""

    server: VersionServer | None = None
    reply: httpx.Response | None = None

    async def end(self) -> None:
        """Gives both back."""
        server, reply = self.server, self.reply
        self.server = self.reply = None
        if server is not None:
            Switchboard.give_back(server)
        if reply is not None:
            await reply.aclose()


class Front:
    """The application. ``log`` is what answered prompts are written to."""

    def __init__(
        self, board: Switchboard, client: httpx.AsyncClient, access: AccessRule, log: PromptLog | None
    ) -> None:
        self.board, self.client, self.access, self.log = board, client, access, log
        self._names = {board.reference, board.reference.partition("@")[0]}
        self._log_failed = False

    def app(self) -> Callable[[Scope, Any, Any], Awaitable[None]]:
        """As ASGI."""
        routes = [Route(path, self.answer, methods=["POST"]) for path in PATHS]
        routes += [Route("/v1/models", self.models), Route("/health", self.health)]
        application = Starlette(routes=routes, exception_handlers={HTTPException: _refused, Exception: _failed})

        async def named(scope: Scope, receive: Any, send: Any) -> None:
            """Has every answer say which version gave it."""
            if scope["type"] != "http":
                await application(scope, receive, send)
                return
            scope["served"], scope["active"] = self.board.current, ActiveRequest()

            async def sending(message: MutableMapping[str, Any]) -> None:
                server: VersionServer | None = scope["served"]
                if message["type"] == "http.response.start" and server is not None:
                    named = ((VERSION, server.name), (DIGEST, server.digest))
                    message["headers"] = [
                        *message["headers"], *((name.lower().encode(), value.encode()) for name, value in named)
                    ]  # fmt: skip
                await send(message)

            try:
                await application(scope, receive, sending)
            finally:  # also where the client has gone before the first word
                await scope["active"].end()

        return named

    async def health(self, request: Request) -> Response:
        """200 while the version's server answers. Says no more than that, and so asks for no key."""
        server = self.board.current
        well = server is not None and await server.is_healthy(self.client)
        return JSONResponse({"status": "ok" if well else "starting"}, 200 if well else 503)

    async def models(self, request: Request) -> Response:
        """The one model that there is, by the name that it is served under."""
        if (refusal := self.access.refusal(request)) is not None:
            return refusal
        server = self.board.current
        created = 0 if server is None else int(server.version.registered.timestamp())
        model = {"id": self.board.reference, "object": "model", "created": created, "owned_by": "rlhf-flows"}
        return JSONResponse({"object": "list", "data": [model]})

    async def answer(self, request: Request) -> Response:
        """Passes a request on, to the next server where the first one dies before it says anything."""
        if (refusal := self.access.refusal(request)) is not None:
            return refusal
        body, refusal = await self._body(request)
        if refusal is not None:
            return refusal
        for _ in range(TRIES):
            try:
                server = await self.board.take()
            except UnavailableError:
                break
            active: ActiveRequest = request.scope["active"]
            active.server = request.scope["served"] = server
            try:
                return await self._passed_on(active, server, request, body)
            except httpx.TransportError as error:
                await active.end()
                _log.warning("the server of %s broke off: %s", server.version, type(error).__name__)
                await asyncio.sleep(0.2)  # for its process to be gone, where that is why
        unavailable = _error(503, "the model's server does not answer now; ask again", "unavailable")
        unavailable.headers["Retry-After"] = "5"
        return unavailable

    async def _body(self, request: Request) -> tuple[dict[str, Any], Response | None]:
        """The request's JSON, or the answer to one that is none."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return {}, _error(415, "send the request as application/json", "unsupported_media_type")
        data, read = b"", 0
        async for chunk in request.stream():  # to its end: a client that is still sending would not read the refusal
            read += len(chunk)
            data = data + chunk if read <= MOST_BYTES else b""
        if read > MOST_BYTES:
            return {}, _error(413, f"more than {MOST_BYTES:,} bytes", "too_large")
        try:
            body = json.loads(data)
        except (ValueError, RecursionError) as error:
            return {}, _error(400, f"the request is no JSON: {error}", "invalid_json")
        if not isinstance(body, dict):
            return {}, _error(400, "the request is no JSON object", "invalid_json")
        model = body.pop("model", None)  # the server knows its model by another name
        if model is not None and str(model) not in self._names:
            return {}, _error(404, f"no model {model!r} here: it is {self.board.reference}", "model_not_found")
        return body, None

    async def _passed_on(
        self, active: "ActiveRequest", server: VersionServer, request: Request, body: Mapping[str, Any]
    ) -> Response:
        """The server's answer: whole, or word by word where the request wants that."""
        given = {name: request.headers[name] for name in PASSED_ON if name in request.headers} | _JSON
        said = {name: value for name, value in body.items() if value is not None}
        content = json.dumps(server.defaults | said).encode()
        sent = self.client.build_request("POST", server.url + request.url.path, content=content, headers=given)
        reply = active.reply = await self.client.send(sent, stream=True)
        headers = {name: reply.headers[name] for name in PASSED_ON if name in reply.headers}
        if body.get("stream") and reply.status_code == 200:
            return StreamingResponse(self._streamed(reply, body), reply.status_code, headers)
        answer = await reply.aread()
        if reply.status_code == 200:
            await self._keep(body)
        return Response(answer, reply.status_code, headers)

    async def _streamed(self, reply: httpx.Response, body: Mapping[str, Any]) -> AsyncIterator[bytes]:
        try:
            async for chunk in reply.aiter_raw():
                yield chunk
        except httpx.TransportError:  # it is too late for another status
            yield b'data: {"error": {"message": "the model\'s server broke off", "type": "server_error"}}\n\n'
        else:
            await self._keep(body)

    async def _keep(self, body: Mapping[str, Any]) -> None:
        """Logs an answered prompt; that it cannot be logged is said once and is no reason to answer otherwise."""
        if self.log is None or "messages" not in body:
            return
        try:
            await asyncio.to_thread(self.log.add, body["messages"])
            self._log_failed = False
        except OSError as error:
            if not self._log_failed:
                self.board.say(f"{self.log.path}: prompts cannot be logged now: {error.strerror or error}")
            self._log_failed = True


_JSON = {"content-type": "application/json", "accept-encoding": "identity"}


def _error(status: int, message: str, code: str) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"error": {"message": message, "type": kind, "code": code}}, status, headers)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail, "not_found" if error.status_code == 404 else "refused")


async def _failed(_request: Request, error: Exception) -> Response:
    _log.error("a request failed: %s", type(error).__name__)
    return _error(500, "the request could not be passed on", "internal")

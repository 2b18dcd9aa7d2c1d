"""The wall in front of every page: who may come in, from where, with how much, and what the browser may do with it.

Gradio serves more than the app uses: uploads, files by path, a proxy, editing of its own source. Below a mounted page
everything is therefore refused that is not on the short lists here, whoever asks.
"""

import json
import logging
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import anyio
import anyio.to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from preference_ui.accounts.auth import Account, authenticate
from preference_ui.store.store import Store, StoreError

COOKIE = "rlhf_session"
ACCOUNT_KEY = "rlhf_account"  # where the guard leaves the account in the request's scope
MAX_BODY = 256 * 1024
API = "/api"
MAX_API_BODY = 4 * 1024 * 1024  # of who has shown a token: a comparison may have 900,000 characters
BODY_SECONDS = 15.0  # until all of it has to be here
MAX_UPLOAD = 2 * 1024**3  # bytes of an administrator's file; it goes to the disk as it comes
UPLOAD_SECONDS = 1800.0
UNAVAILABLE = "The database does not answer. Nothing is lost; please try again in a moment."
ApiDoor = Callable[[Scope], Awaitable[Response | None]]  # lets a program in, or answers
_log = logging.getLogger(__name__)
_READ = re.compile(
    r"/?|/(?:config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)|/(?:static|assets|svelte)/[^?]*"
    r"|/gradio_api/(?:app_id|info|startup-events|theme\.css|login_check|user|heartbeat/[\w-]+)/?"
)
_WRITE = re.compile(r"/gradio_api/component_server/?")
_EVENT = re.compile(r"/gradio_api/run/predict/?")  # of a page of Gradio's own components
_UPLOAD = re.compile(r"/gradio_api/upload/?")
_HEADERS = {
    # Gradio evaluates its components' scripts, hence 'unsafe-eval' and 'unsafe-inline'; nothing may come from another
    # host or go to one, so an answer's text can neither load a tracker nor carry a vote away.
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Guard:
    """ASGI middleware. ``mounts`` maps the path of a page to the role that it is for (None: whoever is signed in).

    ``api`` decides about everything below /api, where no cookie counts.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        store: Store,
        mounts: Mapping[str, str | None],
        own_host: str | None = None,
        with_events: Collection[str] = (),
        with_uploads: Collection[str] = (),
        api: ApiDoor | None = None,
    ) -> None:
        self.app = app
        self.api = api
        self.store = store
        self.mounts = dict(mounts)
        self.with_events = with_events
        self.with_uploads = with_uploads  # pages for administrators alone
        self.own_host = own_host  # as browsers write it, where a proxy may write another into the request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # the app has no websocket
        send = _with_headers(send, scope["path"])
        uploads = self._is_upload(scope)
        answer = self._refuse(scope, MAX_UPLOAD if uploads else _most(scope)) or await self._admit(scope)
        if answer is not None:
            with anyio.move_on_after(BODY_SECONDS):
                await _drain(_limited(receive))
            await _worded(answer, scope)(scope, receive, send)
            return
        if uploads:
            with anyio.move_on_after(UPLOAD_SECONDS):
                await self._pass_on(scope, _limited(receive, MAX_UPLOAD), send)
            return
        body = await _whole_body(receive, _most(scope))
        if isinstance(body, Response):
            body.headers["connection"] = "close"
            await _worded(body, scope)(scope, receive, send)
            return
        await self._pass_on(scope, _again(body, receive), send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ends what goes wrong inside here: a server that sees it closes the connection, and with it the next vote."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:  # whatever it was, it goes into the log and the browser is told
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if not started:
                answer = _sentence(500, "Something went wrong here, and nothing was changed.")
                await _worded(answer, scope)(scope, receive, send)

    def _is_upload(self, scope: Scope) -> bool:
        places = (scope["path"][len(mount) :] for mount in self.with_uploads if _is_below(scope["path"], mount))
        return scope["method"] == "POST" and any(_UPLOAD.fullmatch(rest) for rest in places)

    def _refuse(self, scope: Scope, most: int) -> Response | None:
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return _sentence(405, "This is not done here.")
        if scope["method"] == "POST" and _is_cross_site(headers, self.own_host):
            return _sentence(403, "This request came from another site and was not carried out.")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > most:
            refusal = _sentence(413, "This is more than can be taken at once.")
            refusal.headers["connection"] = "close"
            return refusal
        return None

    async def _admit(self, scope: Scope) -> Response | None:
        if _is_below(scope["path"], API):
            try:
                return await self.api(scope) if self.api is not None else _sentence(404, "There is nothing here.")
            except StoreError:
                return _sentence(503, UNAVAILABLE)
        mount = next((path for path in self.mounts if _is_below(scope["path"], path)), None)
        if mount is None:
            return None
        rest = scope["path"][len(mount) :]
        allowed = _READ if scope["method"] != "POST" else _EVENT if mount in self.with_events else _WRITE
        if (allowed.fullmatch(rest) is None and not self._is_upload(scope)) or ".." in rest:
            return _sentence(404, "There is nothing here.")
        try:
            account = await anyio.to_thread.run_sync(authenticate, self.store, session_token(scope))
        except StoreError:
            return _sentence(503, UNAVAILABLE)
        if account is None:
            if rest in ("", "/") and scope["method"] == "GET":
                return RedirectResponse(f"/login?next={quote(mount)}", 303)
            return _sentence(401, "Please sign in.", code="signed_out")
        if self.mounts[mount] == "administrator" and not account.is_administrator:
            return _sentence(403, "This page is for administrators.")
        scope[ACCOUNT_KEY] = account
        return None


def account_in(scope: Mapping[str, Any]) -> Account | None:
    """The account that the guard let in with this request. The guard alone writes it; no header or body can."""
    account = scope.get(ACCOUNT_KEY)
    return account if isinstance(account, Account) else None


def session_token(scope: Scope) -> str | None:
    """The session's token as the browser sent it."""
    return cookie_parser(Headers(scope=scope).get("cookie", "")).get(COOKIE)


def _is_below(path: str, mount: str) -> bool:
    return path == mount or path.startswith(mount + "/")


def _is_cross_site(headers: Headers, own_host: str | None) -> bool:
    """Whether a browser says that another site made this request. Programs say nothing, and send no cookie unasked."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc.lower() not in (headers.get("host", "").lower(), own_host)


def _sentence(status: int, say: str, *, code: str = "refused") -> Response:
    return JSONResponse({"ok": False, "code": code, "say": say}, status)


def _most(scope: Scope) -> int:
    """How many bytes a request may carry."""
    return MAX_API_BODY if _is_below(scope["path"], API) else MAX_BODY


def _worded(answer: Response, scope: Scope) -> Response:
    """A refusal as programs are told it, where one asks."""
    told = json.loads(bytes(answer.body)) if _is_below(scope["path"], API) else {}
    if "say" not in told:
        return answer
    other = JSONResponse({"detail": told["say"], "code": told["code"]}, answer.status_code)
    if "connection" in answer.headers:
        other.headers["connection"] = answer.headers["connection"]
    return other


def _limited(receive: Receive, most: int = MAX_BODY) -> Receive:
    """Counts what really comes in: a body without a length is cut off at the same size."""
    taken = 0

    async def limited() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        return {"type": "http.disconnect"} if taken > most else message

    return limited


async def _whole_body(receive: Receive, most: int) -> bytes | Response:
    """What a request carries, once all of it has come; else why it is not waited for any longer.

    A body that comes byte by byte would otherwise be held, with its thread's place, for as long as its sender likes.
    """
    parts: list[bytes] = []
    taken = 0
    with anyio.move_on_after(BODY_SECONDS):
        while True:
            message = await receive()
            parts.append(message.get("body", b""))
            taken += len(parts[-1])
            if taken > most:
                return _sentence(413, "This is more than can be taken at once.")
            if message["type"] != "http.request" or not message.get("more_body", False):
                return b"".join(parts)
    return _sentence(408, "This took too long to arrive. Please try again.")


def _again(body: bytes, receive: Receive) -> Receive:
    """The request's body in one piece, and then whatever else is heard."""
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _drain(receive: Receive) -> None:
    """Reads what a refused request carries: a server that closes on unread data cuts the next request off too."""
    while True:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return


def _with_headers(send: Send, path: str) -> Callable[[Message], Awaitable[None]]:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            if "/static/" not in path and "/assets/" not in path and not path.startswith("/desk/"):
                headers["cache-control"] = "no-store"
        await send(message)

    return with_headers

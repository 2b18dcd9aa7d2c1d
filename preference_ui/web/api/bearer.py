"""Who a program is: the token in ``Authorization: Bearer``, and what its scopes allow. A cookie gives no rights."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import anyio.to_thread
from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from preference_ui.accounts.tokens import Bearer, bearer_of
from preference_ui.accounts.tokens import Scope as TokenScope
from preference_ui.store.errors import Refusal
from preference_ui.store.store import Store

BEARER_KEY = "rlhf_bearer"  # where the door leaves who shows the token, in the request's scope
PUBLIC = ("/api/v1/docs", "/api/v1/openapi.json")  # what the API is; nothing of what is in the store
NO_TOKEN = "Show a token that holds: Authorization: Bearer rlhf_…"
_shown = HTTPBearer(auto_error=False, description="A token of `rlhf raters token create`.")


class BearerDoor:
    """In front of everything below /api: lets in who shows a token that holds, before a body is read."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def __call__(self, scope: Scope) -> Response | None:
        """None for who may come in, else the answer."""
        if scope["path"] in PUBLIC and scope["method"] in ("GET", "HEAD"):
            return None
        kind, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            return refused(401, NO_TOKEN, "no_token", {"www-authenticate": "Bearer"})
        address = scope["client"][0] if scope.get("client") else "unknown"
        try:
            bearer = await anyio.to_thread.run_sync(bearer_of, self.store, token.strip(), address)
        except Refusal as refusal:
            return refused(429, refusal.sentence, refusal.code)
        if bearer is None:
            return refused(401, NO_TOKEN, "wrong_token", {"www-authenticate": 'Bearer error="invalid_token"'})
        scope[BEARER_KEY] = bearer
        return None


class ApiRefusal(Exception):  # noqa: N818 (it is an answer, not an error)
    """An answer other than what was asked for."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


def refused(status: int, detail: str, code: str, headers: Mapping[str, str] | None = None, **more: Any) -> Response:
    """An answer that says no: ``detail`` for people, ``code`` for programs."""
    return JSONResponse({"detail": detail, "code": code} | more, status, headers=dict(headers or {}))


def allowed(scope: TokenScope) -> Callable[..., Bearer]:
    """A dependency of a route: who shows a token of this scope."""

    def check(request: Request, _shown: Annotated[HTTPAuthorizationCredentials | None, Security(_shown)]) -> Bearer:
        bearer = request.scope.get(BEARER_KEY)  # the door alone writes it
        if not isinstance(bearer, Bearer):
            raise ApiRefusal(refused(401, NO_TOKEN, "no_token", {"www-authenticate": "Bearer"}))
        if scope not in bearer.scopes:
            detail = f"This needs a token with the scope {scope}; yours has {', '.join(sorted(bearer.scopes))}."
            head = {"www-authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'}
            raise ApiRefusal(refused(403, detail, "scope", head))
        administers = bearer.role == "administrator" and bearer.state == "active"
        if scope != "vote" and bearer.account_id is not None and not administers:
            raise ApiRefusal(refused(403, "The token's account is no active administrator's.", "forbidden"))
        return bearer

    return check

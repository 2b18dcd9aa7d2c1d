"""Sign-in through an OpenID Connect provider, as an option. It opens a session; what a person may do stays the store's.

Who is unknown needs an invitation all the same: the link's page offers "Continue with …", and the provider's subject is
tied to the new account.
"""

import logging
import os
import re
import secrets
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
import fastapi
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.starlette_client import OAuth
from fastapi.responses import RedirectResponse
from httpx import HTTPError
from joserfc.errors import JoseError
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import HTMLResponse, Response

from alignment.errors import Fault, InputError
from preference_ui.accounts import accounts
from preference_ui.store.errors import Refusal
from preference_ui.store.store import Store
from preference_ui.web.auth_pages import set_session
from preference_ui.web.public_address import LOCAL, PublicAddress

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OidcSettings:
    """The provider. ``issuer`` is its address, without /.well-known/openid-configuration."""

    issuer: str
    client_id: str
    client_secret: str
    name: str = "your organisation"

    @classmethod
    def from_environment(cls) -> "OidcSettings | None":
        """Reads RLHF_OIDC_ISSUER, _CLIENT_ID, _CLIENT_SECRET and _NAME. None where no issuer is set."""
        issuer = os.environ.get("RLHF_OIDC_ISSUER", "").rstrip("/")
        if not issuer:
            return None
        found = {name: os.environ.get(f"RLHF_OIDC_{name.upper()}", "") for name in ("client_id", "client_secret")}
        missing = [f"RLHF_OIDC_{name.upper()}" for name, value in found.items() if not value]
        if missing:
            raise InputError([Fault("is not set", "set it, or unset RLHF_OIDC_ISSUER", field=name) for name in missing])
        return cls(issuer, **found, name=os.environ.get("RLHF_OIDC_NAME", "your organisation"))


def add_oidc(app: fastapi.FastAPI, store: Store, settings: OidcSettings, address: PublicAddress = LOCAL) -> None:
    """Adds /login/oidc and its way back, which lies at ``address``."""
    app.add_middleware(
        SessionMiddleware, secret_key=secrets.token_urlsafe(32), session_cookie="rlhf_oidc", max_age=600,
        https_only=address.scheme == "https",
    )  # fmt: skip
    oauth = OAuth()
    client: Any = oauth.register(
        "provider",
        server_metadata_url=f"{settings.issuer}/.well-known/openid-configuration",
        client_id=settings.client_id,
        client_secret=settings.client_secret,
        client_kwargs={"scope": "openid email profile", "code_challenge_method": "S256"},
    )

    async def leave(request: fastapi.Request, invitation: str = "") -> Response:
        request.session["invitation"] = invitation[:100]
        try:
            own = request.url_for("oidc_return")
            back = str(own) if address.url is None else f"{address.url}{own.path}"
            return await client.authorize_redirect(request, back)  # type: ignore[no-any-return]
        except (HTTPError, AuthlibBaseError):
            return _sorry("The sign-in service does not answer. Please try again later.", 503)

    async def come_back(request: fastapi.Request) -> Response:
        try:
            claims = (await client.authorize_access_token(request))["userinfo"]
        except (HTTPError, AuthlibBaseError, JoseError, KeyError, ValueError) as error:
            _log.warning("a sign-in through OpenID Connect was refused: %r", error)
            return _sorry("The sign-in was not completed. Please try again.", 400)
        invitation = request.session.pop("invitation", "")
        try:
            session = await anyio.to_thread.run_sync(_session, store, dict(claims), settings.issuer, invitation)
        except Refusal as refusal:
            return _sorry(refusal.sentence, 403)
        response = RedirectResponse("/rate", 303)
        set_session(request, response, session)
        return response

    app.add_api_route("/login/oidc", leave, methods=["GET"], response_class=Response)
    app.add_api_route("/login/oidc/return", come_back, methods=["GET"], response_class=Response, name="oidc_return")


def _session(store: Store, claims: dict[str, Any], issuer: str, invitation: str) -> str:
    subject = f"{claims.get('iss', issuer)} {claims['sub']}"
    known = accounts.sign_in_oidc(store, subject)
    if known is not None:
        return known
    if not invitation:
        raise Refusal("unknown", "You are not known here yet. Please ask an administrator for an invitation link.")
    wanted = str(claims.get("preferred_username") or claims.get("email") or "").lower()
    name = re.sub(r"[^a-z0-9._@+-]", "", wanted).strip("._@+-")[:50]
    for candidate in (name, f"{name or 'rater'}-{secrets.token_hex(3)}"):
        try:
            return accounts.accept(store, invitation, candidate, None, oidc_subject=subject)[1]
        except Refusal as refusal:
            if refusal.code != "name":
                raise
    raise Refusal("name", "No account could be made from this sign-in. Please ask your administrator.")


def _sorry(sentence: str, status: int) -> Response:
    return HTMLResponse(
        f'<!doctype html><html lang="en"><title>Sign-in</title><p>{sentence}</p><p><a href="/login">Back</a>', status
    )

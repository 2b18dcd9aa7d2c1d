"""Sign-in through an OpenID Connect provider: a real code flow with PKCE and signed tokens, over HTTP."""

import base64
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import fastapi
import httpx
import pytest
import uvicorn
from joserfc import jwt
from joserfc.jwk import RSAKey
from sqlalchemy import select

from alignment.errors import InputError
from preference_ui.accounts import accounts
from preference_ui.store import schema
from preference_ui.store.store import Store
from preference_ui.web.middleware import COOKIE
from preference_ui.web.oidc import OidcSettings

pytestmark = pytest.mark.slow  # an app of its own


class Provider:
    """An identity provider. ``person`` is who sits before the browser; ``spoil`` changes what its tokens claim."""

    def __init__(self, port: int) -> None:
        self.issuer = f"http://127.0.0.1:{port}"
        self.key, self.foreign = RSAKey.generate_key(2048), RSAKey.generate_key(2048)
        self.person: dict[str, Any] = {}
        self.spoil: dict[str, Any] = {}
        self.forged = False
        self._grants: dict[str, dict[str, str]] = {}
        self.app = fastapi.FastAPI()
        self.app.add_api_route("/.well-known/openid-configuration", self._metadata)
        self.app.add_api_route("/keys", lambda: {"keys": [self.key.as_dict(private=False, use="sig", alg="RS256")]})
        self.app.add_api_route("/authorize", self._authorize)
        self.app.add_api_route("/token", self._token, methods=["POST"])

    def _metadata(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer, "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token", "jwks_uri": f"{self.issuer}/keys",
            "response_types_supported": ["code"], "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"], "code_challenge_methods_supported": ["S256"],
        }  # fmt: skip

    def _authorize(self, request: fastapi.Request) -> Any:
        asked = dict(request.query_params)
        assert asked["client_id"] == "rlhf"
        assert asked["code_challenge_method"] == "S256"
        code = f"code-{len(self._grants)}"
        self._grants[code] = asked
        back = httpx.URL(asked["redirect_uri"]).copy_merge_params({"code": code, "state": asked["state"]})
        return fastapi.responses.RedirectResponse(str(back), 302)

    async def _token(self, request: fastapi.Request) -> dict[str, Any]:
        sent = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        asked = self._grants.pop(sent["code"])
        digest = hashlib.sha256(sent["code_verifier"].encode()).digest()
        assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == asked["code_challenge"]
        moment = int(time.time())
        claims = {"iss": self.issuer, "aud": "rlhf", "iat": moment, "exp": moment + 300, "nonce": asked["nonce"],
                  **self.person, **self.spoil}  # fmt: skip
        key = self.foreign if self.forged else self.key
        token = jwt.encode({"alg": "RS256", "kid": self.key.as_dict()["kid"]}, claims, key)
        return {"access_token": "a", "token_type": "Bearer", "expires_in": 300, "id_token": token}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    port = _free_port()
    made = Provider(port)
    made.key.ensure_kid()
    server = uvicorn.Server(uvicorn.Config(made.app, "127.0.0.1", port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield made
    server.should_exit = True
    thread.join(timeout=10)


@pytest.fixture(scope="module")
def app(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Store]]:
    """The app as its own process, with the provider in its environment: its address, and its store."""
    folder, port = tmp_path_factory.mktemp("oidc"), _free_port()
    url = f"sqlite:///{folder}/votes.db"
    settings = {"ISSUER": provider.issuer, "CLIENT_ID": "rlhf", "CLIENT_SECRET": "s", "NAME": "Example Ltd"}
    environment = os.environ | {f"RLHF_OIDC_{name}": value for name, value in settings.items()}
    code = f"from preference_ui.app import serve; serve({url!r}, port={port})"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=log, stderr=log)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 120
    while time.monotonic() < end:
        try:
            httpx.get(f"{address}/health")
            break
        except httpx.HTTPError:
            time.sleep(0.2)
    store = Store.open(url)
    yield address, store
    store.close()
    process.terminate()
    process.wait(timeout=20)


def _go(address: str, invitation: str = "") -> tuple[httpx.Client, httpx.Response]:
    """A browser that follows the whole way, from the link on the page to where it ends."""
    client = httpx.Client(follow_redirects=True, timeout=60)
    return client, client.get(f"{address}/login/oidc", params={"invitation": invitation} if invitation else {})


def _people(store: Store) -> list[str]:
    with store.read() as connection:
        return list(connection.execute(select(schema.accounts.c.name).order_by(schema.accounts.c.name)).scalars())


def test_an_invited_person_comes_in_and_is_known_from_then_on(app: tuple[str, Store], provider: Provider) -> None:
    address, store = app
    provider.person, provider.spoil = {"sub": "s-1", "preferred_username": "Ada.L"}, {}
    _, stranger = _go(address)
    assert stranger.status_code == 403
    assert "ask an administrator for an invitation" in stranger.text
    token = accounts.invite(store, "rater", created_by="test")
    page = httpx.get(f"{address}/invite/{token}").text
    assert "Continue with Example Ltd" in page
    client, entered = _go(address, token)
    assert entered.status_code == 200
    assert urlsplit(str(entered.url)).path.rstrip("/") == "/rate"
    assert COOKIE in client.cookies
    assert _people(store) == ["ada.l"]
    again, entered = _go(address)  # on another day, without an invitation
    assert entered.status_code == 200
    assert COOKIE in again.cookies
    assert _people(store) == ["ada.l"]
    wrong = httpx.post(f"{address}/login", data={"name": "ada.l", "password": "ada.l"})  # there is no password to guess
    assert wrong.status_code == 400


@pytest.mark.parametrize(
    "spoil", [{"aud": "another"}, {"iss": "http://evil.example"}, {"exp": 1}, {"nonce": "another"}, {"forged": True}]
)
def test_a_token_that_is_not_for_us_opens_nothing(
    app: tuple[str, Store], provider: Provider, spoil: dict[str, Any]
) -> None:
    address, store = app
    token = accounts.invite(store, "rater", created_by="test")
    before = _people(store)
    provider.person = {"sub": "s-evil", "preferred_username": "eve"}
    provider.forged = bool(spoil.get("forged"))
    provider.spoil = {} if provider.forged else spoil
    try:
        client, refused = _go(address, token)
    finally:
        provider.spoil, provider.forged = {}, False
    assert refused.status_code in (400, 403)
    assert COOKIE not in client.cookies
    assert _people(store) == before


def test_a_way_back_without_a_way_there_is_refused(app: tuple[str, Store]) -> None:
    address, _ = app
    for query in ("", "?code=stolen&state=invented", "?error=access_denied"):
        reply = httpx.get(f"{address}/login/oidc/return{query}")
        assert reply.status_code == 400
        assert COOKIE not in reply.cookies


def test_half_a_configuration_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLIENT_ID", "CLIENT_SECRET", "NAME"):
        monkeypatch.delenv(f"RLHF_OIDC_{name}", raising=False)
    monkeypatch.delenv("RLHF_OIDC_ISSUER", raising=False)
    assert OidcSettings.from_environment() is None
    monkeypatch.setenv("RLHF_OIDC_ISSUER", "https://id.example/")
    with pytest.raises(InputError, match="RLHF_OIDC_CLIENT_ID"):
        OidcSettings.from_environment()

"""Behind a proxy: who asks, over what, and from where; and only from proxies that were named."""

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import fastapi
import pytest
import yaml
from starlette.testclient import TestClient

from alignment.errors import InputError
from preference_ui.accounts import accounts as people
from preference_ui.accounts.throttle import FREE_HERE
from preference_ui.store.store import Store
from preference_ui.web.auth_pages import Door, doors
from preference_ui.web.middleware import Guard
from preference_ui.web.oidc import OidcSettings, add_oidc
from preference_ui.web.public_address import FromOutside, PublicAddress

PASSWORD = "three calm green rivers"
PROXY = "10.0.0.9"
SHIPPED = PublicAddress.of("https://raters.example/", ["private"])  # as infra/compose.yaml starts the app


def _client(store: Store, address: PublicAddress, peer: str = PROXY, **options: Any) -> TestClient:
    """The door alone, as the app has it, and a connection to it from ``peer``."""
    app = fastapi.FastAPI()
    app.include_router(doors(Door(store)))
    app.add_middleware(Guard, store=store, mounts={}, own_host=address.host)
    app.add_middleware(FromOutside, address=address)
    return TestClient(app, client=(peer, 5000), follow_redirects=False, **options)


@pytest.fixture
def door(sqlite_store: Store) -> Store:
    token = people.first_administrator(sqlite_store)
    assert token is not None
    people.accept(sqlite_store, token, "root", PASSWORD)
    return sqlite_store


def _sign_in(client: TestClient, password: str, forwarded: str = "203.0.113.7", name: str = "root") -> Any:
    return client.post("/login", data={"name": name, "password": password}, headers={"x-forwarded-for": forwarded})


def test_behind_https_the_cookie_is_secure_and_browsers_come_back_over_nothing_else(door: Store) -> None:
    reply = _sign_in(_client(door, SHIPPED), PASSWORD)
    assert reply.status_code == 303
    assert "; secure" in reply.headers["set-cookie"].lower()
    assert reply.headers["strict-transport-security"].startswith("max-age=")
    plain = _sign_in(_client(door, PublicAddress()), PASSWORD)
    assert "secure" not in plain.headers["set-cookie"].lower()
    assert "strict-transport-security" not in plain.headers


@pytest.mark.parametrize(("peer", "secure"), [(PROXY, True), ("198.51.100.1", False)])
def test_without_a_public_url_a_named_proxy_says_the_scheme_and_nobody_else(
    door: Store, peer: str, secure: bool
) -> None:
    client = _client(door, PublicAddress.of(None, ["10.0.0.0/24"]), peer)
    headers = {"x-forwarded-proto": "https"}
    reply = client.post("/login", data={"name": "root", "password": PASSWORD}, headers=headers)
    assert ("; secure" in reply.headers["set-cookie"].lower()) == secure


def test_each_rater_behind_the_proxy_has_a_throttle_of_their_own(door: Store) -> None:
    client = _client(door, SHIPPED)
    for _ in range(FREE_HERE):
        assert _sign_in(client, "wrong", "203.0.113.7").status_code == 400
    assert _sign_in(client, PASSWORD, "203.0.113.7").status_code == 429
    assert _sign_in(client, PASSWORD, "203.0.113.8").status_code == 303
    assert _sign_in(client, PASSWORD, "203.0.113.8, 203.0.113.7").status_code == 429  # the proxy wrote the last


def test_who_is_no_named_proxy_cannot_choose_an_address(door: Store) -> None:
    for address in (PublicAddress.of("https://raters.example"), PublicAddress.of(None, ["10.1.0.0/16"])):
        client = _client(door, address)
        for at in range(FREE_HERE):
            _sign_in(client, "wrong", f"203.0.113.{at}", name=f"nobody{address.host}")
        assert _sign_in(client, "wrong", "203.0.113.99", name=f"nobody{address.host}").status_code == 429
    said = [line["detail"] for line in door.audit_trail() if line["action"] == "session.refused"]
    assert {one["address"] for one in said} == {PROXY}


def test_a_post_from_the_public_page_is_no_other_sites_whatever_host_the_proxy_writes(door: Store) -> None:
    client = _client(door, SHIPPED)
    data = {"name": "root", "password": PASSWORD}
    ours = client.post("/login", data=data, headers={"origin": "https://raters.example", "host": "app:7860"})
    assert ours.status_code == 303
    others = client.post("/login", data=data, headers={"origin": "https://evil.example", "host": "app:7860"})
    assert others.status_code == 403


def test_openid_connect_comes_back_to_the_public_address(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the provider's own page: what it is asked for."""
    app = fastapi.FastAPI()
    add_oidc(app, sqlite_store, OidcSettings("https://id.example", "rlhf", "s"), SHIPPED)
    app.add_middleware(FromOutside, address=SHIPPED)
    from authlib.integrations.starlette_client import StarletteOAuth2App

    async def metadata(_self: Any) -> dict[str, str]:  # what the provider would answer
        return {"issuer": "https://id.example", "authorization_endpoint": "https://id.example/authorize"}

    monkeypatch.setattr(StarletteOAuth2App, "load_server_metadata", metadata)
    client = TestClient(app, client=(PROXY, 1), follow_redirects=False)
    reply = client.get("/login/oidc", headers={"host": "app:7860"})
    asked = parse_qs(urlsplit(reply.headers["location"]).query)
    assert asked["redirect_uri"] == ["https://raters.example/login/oidc/return"]
    assert "; secure" in reply.headers["set-cookie"].lower()


@pytest.mark.parametrize("url", ["raters.example", "ftp://x", "https://", "https://x/app", "https://x?y", "http://x:y"])
def test_a_public_url_that_is_none_is_said(url: str) -> None:
    with pytest.raises(InputError, match="--public-url"):
        PublicAddress.of(url)


@pytest.mark.parametrize("proxy", ["proxy", "10.0.0.0/99", "", "*", "10.0.0.1/8"])
def test_a_proxy_that_is_no_address_is_said(proxy: str) -> None:
    with pytest.raises(InputError, match="--trusted-proxy"):
        PublicAddress.of(None, [proxy])


def test_the_shipped_proxy_is_one_that_is_named() -> None:
    """The app's port is not published, so all that reaches it comes over the private network of the composition."""
    composed = yaml.safe_load((Path(__file__).parents[3] / "infra/compose.yaml").read_text("utf-8"))["services"]
    assert "--trusted-proxy private" in composed["app"]["command"][2]
    assert "ports" not in composed["app"]

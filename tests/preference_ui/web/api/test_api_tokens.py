"""Who may do what with which token, over HTTP."""

import hashlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from preference_ui.accounts.accounts import change_state
from preference_ui.accounts.tokens import list_tokens, make_token, revoke_token
from preference_ui.store import schema
from preference_ui.store.errors import Refusal
from preference_ui.store.store import Store, now
from preference_ui.web.api.application import api_app

ROW = {"prompt": "What is two and two?", "responses": ["Four.", "Five."]}
ENDPOINTS: list[tuple[str, str, str, Any, int]] = [  # method, path, scope, body, what a right token gets
    ("POST", "/comparisons", "queue", {"rows": [ROW]}, 200),
    ("POST", "/comparisons/withdraw", "queue", {"ids": ["none"]}, 200),
    ("POST", "/comparisons/put_back", "queue", {"ids": ["none"]}, 200),
    ("GET", "/votes", "read", None, 200),
    ("GET", "/records", "read", None, 200),
    ("GET", "/records/none", "read", None, 404),
    ("GET", "/queues", "read", None, 200),
    ("GET", "/guidelines", "vote", None, 200),
    ("POST", "/guidelines/read", "vote", {"version": 0}, 200),
    ("POST", "/leases", "vote", None, 200),
    ("POST", "/leases/none/vote", "vote", {"outcome": "both_bad"}, 404),
    ("POST", "/leases/none/skip", "vote", {"reason": "unclear"}, 404),
    ("POST", "/leases/none/flag", "vote", {"reason": "broken"}, 404),
    ("GET", "/progress", "vote", None, 200),
]
KEY = [f"{method} {path}" for method, path, *_ in ENDPOINTS]


def _call(api: Any, method: str, path: str, body: Any, token: str | None, **more: Any) -> Any:
    return api.call(method, path, token, **({} if body is None else {"json": body}), **more)


def test_the_table_of_endpoints_is_whole(sqlite_store: Store) -> None:
    document = api_app(sqlite_store).openapi()
    there = {(method.upper(), path.replace("{lease}", "none").replace("{identifier}", "none"))
             for path, methods in document["paths"].items() for method in methods}  # fmt: skip
    assert there == {(method, path) for method, path, *_ in ENDPOINTS}


@pytest.mark.parametrize(("method", "path", "scope", "body", "granted"), ENDPOINTS, ids=KEY)
def test_every_scope_opens_its_own_endpoints_alone(
    api: Any, voter: Callable[..., str], method: str, path: str, scope: str, body: Any, granted: int
) -> None:
    tokens = {"queue": api.token("queue"), "read": api.token("read"), "vote": voter(api, "ada")}
    for other, token in tokens.items():
        reply = _call(api, method, path, body, token)
        assert reply.status_code == (granted if other == scope else 403), reply.text
        if other != scope:
            assert set(reply.json()) == {"detail", "code"}
            assert f'scope="{scope}"' in reply.headers["www-authenticate"]


@pytest.mark.parametrize(("method", "path", "scope", "body", "granted"), ENDPOINTS, ids=KEY)
def test_without_a_token_that_holds_nothing_answers(
    sqlite_api: Any, voter: Callable[..., str], method: str, path: str, scope: str, body: Any, granted: int
) -> None:
    api = sqlite_api
    token = voter(api, "ada") if scope == "vote" else api.token(scope)
    refused = [
        _call(api, method, path, body, None),
        _call(api, method, path, body, None, headers={"authorization": token}),
        _call(api, method, path, body, None, headers={"authorization": f"Basic {token}"}),
        _call(api, method, path, body, None, headers={"cookie": f"rlhf_session={token}"}),
        _call(api, method, f"{path}?token={token}&access_token={token}", body, None),
        _call(api, method, path, body, token[:-1]),
    ]
    assert [one.status_code for one in refused] == [401] * len(refused)
    assert all(one.json()["detail"].startswith("Show a token") for one in refused)
    assert all(one.headers["www-authenticate"].startswith("Bearer") for one in refused)


def test_a_token_ends_when_it_is_revoked_and_when_its_time_is_over(api: Any) -> None:
    identifier, token = make_token(api.store, "ci", ["read"], created_by="root")
    other = api.token("read")
    assert api.get("/votes", token).status_code == 200
    revoke_token(api.store, identifier, actor="root")
    assert api.get("/votes", token).status_code == 401
    assert api.get("/votes", other).status_code == 200
    with pytest.raises(Refusal, match="no such token"):
        revoke_token(api.store, identifier, actor="root")
    with api.store.write() as connection:
        ended = update(schema.tokens).where(schema.tokens.c.name == "t").values(expires=now() - timedelta(seconds=1))
        connection.execute(ended)
    assert api.get("/votes", other).status_code == 401
    assert {one["name"]: one["state"] for one in list_tokens(api.store)} == {"ci": "revoked", "t": "expired"}
    assert [line["action"] for line in api.store.audit_trail(subject=identifier)] == ["token.revoke", "token.create"]


def test_an_account_that_is_paused_or_disabled_votes_no_more(api: Any, voter: Callable[..., str]) -> None:
    token = voter(api, "ada")
    assert api.post("/leases", token).status_code == 200
    change_state(api.store, "id-ada", "paused", actor="root")
    paused = api.post("/leases", token)
    assert (paused.status_code, paused.json()["code"]) == (403, "paused")
    assert api.get("/progress", token).status_code == 403
    change_state(api.store, "id-ada", "active", actor="root")
    assert api.post("/leases", token).status_code == 200
    change_state(api.store, "id-ada", "disabled", actor="root")
    assert api.post("/leases", token).status_code == 401


def test_an_administrators_token_holds_while_the_administrator_does(api: Any, add_rater: Callable[..., str]) -> None:
    for name in ("root", "boss"):
        add_rater(api.store, name, role="administrator")
    token = api.token("queue", "read", account="boss")
    assert api.get("/votes", token).status_code == 200
    change_state(api.store, "id-boss", "paused", actor="root")
    assert api.get("/votes", token).status_code == 403
    assert api.post("/comparisons", token, {"rows": [ROW]}).status_code == 403
    change_state(api.store, "id-boss", "disabled", actor="root")
    assert api.get("/votes", token).status_code == 401


@pytest.mark.parametrize(
    ("name", "scopes", "account", "said"),
    [("ci", ["vote"], None, "needs the account"), ("ci", ["vote", "read"], "ada", "stay blind"),
     ("ci", ["vote", "queue"], "ada", "stay blind"), ("ci", ["read"], "ada", "an administrator's"),
     ("ci", ["vote"], "nobody", "no such account"), ("ci", ["vote"], "gone", "disabled"),
     ("ci", ["write"], None, "no scope 'write'"), ("ci", [], None, "no scope is named"),
     ("", ["read"], None, "name"), ("A b", ["read"], None, "name"), ("a:b", ["read"], None, "name"),
     ("x" * 41, ["read"], None, "name"), ("a\n", ["read"], None, "name")],
)  # fmt: skip
def test_a_token_that_should_not_be_is_not_made(
    sqlite_store: Store, add_rater: Callable[..., str], name: str, scopes: list[str], account: str | None, said: str
) -> None:
    add_rater(sqlite_store, "ada")
    add_rater(sqlite_store, "gone", state="disabled")
    with pytest.raises(Refusal, match=said):
        make_token(sqlite_store, name, scopes, account=account, created_by="root")
    assert list_tokens(sqlite_store) == []


def test_the_store_and_the_list_hold_a_hash_and_the_last_use(api: Any) -> None:
    identifier, token = make_token(api.store, "ci", ["queue", "read"], days=7, created_by="root")
    with api.store.read() as connection:
        row = connection.execute(select(schema.tokens)).one()
        everything = str(connection.execute(select(schema.audit)).all())
    assert row.token_hash == hashlib.sha256(token.encode()).hexdigest()
    assert token not in str(row) + everything
    assert row.expires - row.created == timedelta(days=7)
    assert row.used is None
    api.get("/votes", token)
    [listed] = list_tokens(api.store)
    assert (listed["id"], listed["scopes"], listed["state"], listed["account"]) == (
        identifier, "queue,read", "active", "",
    )  # fmt: skip
    assert now() - listed["used"] < timedelta(minutes=1)
    assert row.token_hash not in str(listed)


def test_wrong_tokens_are_slowed_down_and_a_right_one_never_is(api: Any) -> None:
    token = api.token("read")
    codes = [api.get("/votes", f"rlhf_wrong{at}").status_code for at in range(9)]
    assert codes == [401] * 5 + [429] * 4  # five are free, as wrong passwords are
    locked = api.get("/votes", "rlhf_wrong")
    assert "Too many failed attempts" in locked.json()["detail"]
    assert api.get("/votes", token).status_code == 200
    refused = [line for line in api.store.audit_trail() if line["action"] == "token.refused"]
    assert len(refused) == 5
    assert "rlhf_wrong" not in str(refused)


@pytest.mark.parametrize("token", ["x" * 5_000, "' OR 1=1 --", "rlhf_%00", "\x7f", "rlhf_é", "rlhf_a b"])
def test_a_strange_token_is_a_wrong_one(api: Any, token: str) -> None:
    api.token("read")
    head = {"authorization": f"Bearer {token}".encode("latin-1")}
    assert api.call("GET", "/votes", None, headers=head).status_code == 401

"""Attacks over raw HTTP on the running app. Each test fails if its attack works."""

import contextlib
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, insert, select, update

from alignment.records import Comparison
from preference_ui.accounts import accounts as people
from preference_ui.accounts.auth import hash_password, sign_out_everywhere
from preference_ui.labelling.queue import Gold, queue_comparisons, queue_gold
from preference_ui.store import schema
from preference_ui.store.errors import Refusal
from preference_ui.store.store import now
from preference_ui.web.middleware import COOKIE

Make = Callable[..., Comparison]
PASSWORD = "three calm green rivers"
RATER_FUNCTIONS = ("begin", "vote", "undo", "draft", "read_guidelines", "history", "revise", "step_back", "leave_vote")
ADMINISTRATOR_FUNCTIONS = ("overview", "set_state", "set_excluded", "invite", "save_settings", "sign_out_account")


def _votes(app: Any) -> int:
    with app.store.read() as connection:
        return int(connection.execute(select(func.count()).select_from(schema.votes)).scalar_one())


def _work(app: Any, comparison: Make, name: str, *texts: str, **more: Any) -> None:
    queue_comparisons(app.store, [comparison(name, *texts, **more)], votes_wanted=50)


@pytest.mark.parametrize("cookie", [{}, {COOKIE: "invented"}, {COOKIE: ""}, {COOKIE: "x" * 4000}])
def test_nothing_answers_without_a_login(running_app: Any, cookie: dict[str, str]) -> None:
    stranger = httpx.Client(base_url=running_app.url, cookies=cookie)
    for page, functions in (("/rate", RATER_FUNCTIONS), ("/admin", ADMINISTRATOR_FUNCTIONS)):
        for function in functions:
            assert running_app.call(stranger, function, page=page).status_code == 401
        for path in ("/config", "/gradio_api/info", "/assets/x.js", "/theme.css", "/gradio_api/heartbeat/abc"):
            assert stranger.get(page + path).status_code == 401
        assert stranger.get(page).status_code == 303


def test_a_session_hash_gives_no_identity(running_app: Any, comparison: Make) -> None:
    _work(running_app, comparison, "hash-0")
    ada, eve = running_app.sign_in("ada"), running_app.sign_in("eve")
    assert running_app.call(ada, "begin", session_hash="adas-page")["name"] == ada.name
    stolen = running_app.call(eve, "begin", session_hash="adas-page")
    assert stolen["name"] == eve.name
    assert (
        running_app.call(httpx.Client(base_url=running_app.url), "begin", session_hash="adas-page").status_code == 401
    )


def test_anothers_lease_cannot_be_voted_on_or_drafted(running_app: Any, comparison: Make) -> None:
    _work(running_app, comparison, "lease-0")
    ada, eve = running_app.sign_in("ada"), running_app.sign_in("eve")
    lease = running_app.call(ada, "begin")["screen"]["lease"]
    before = _votes(running_app)
    verdict = {"outcome": "both_bad"}
    for reply in (
        running_app.call(eve, "vote", {"lease": lease, "verdict": verdict}),
        running_app.call(eve, "draft", {"lease": lease, "draft": {"comment": "mine"}}),
    ):
        assert (reply["ok"], reply["code"]) == (False, "no_lease")
    assert _votes(running_app) == before
    assert running_app.call(ada, "begin")["screen"]["draft"] is None


def test_a_rater_gets_nothing_of_the_administrators(running_app: Any) -> None:
    eve = running_app.sign_in("eve")
    target = running_app.sign_in("victim")
    data = {"account": target.account, "state": "disabled", "reason": ""}
    for function in ADMINISTRATOR_FUNCTIONS:
        assert running_app.call(eve, function, data, page="/admin").status_code == 403
        across = running_app.call(eve, function, data, component_id=running_app.component("/admin"))
        assert across.status_code >= 400  # through the page that raters may see
        assert eve.get("/rate/config").status_code == 200  # on the same connection, which stays whole
    assert eve.get("/admin/config").status_code == 403
    assert running_app.call(target, "begin")["ok"]


def test_a_paused_administrator_is_no_administrator(running_app: Any) -> None:
    paused = running_app.sign_in("paused", "administrator", state="paused")
    assert running_app.call(paused, "overview", page="/admin").status_code == 403


def test_what_is_sent_before_the_vote_tells_nothing(running_app: Any, comparison: Make) -> None:
    gold = comparison("gold-secret", "right", "wrong")
    queue_gold(running_app.store, [Gold(gold, (("gold-secret-a",), ("gold-secret-b",)), "because-secret")])
    rater = running_app.sign_in("blind")
    seen = []
    for _ in range(40):
        reply = running_app.call(rater, "begin")["screen"]
        if reply["lease"] is None:
            break
        seen.append(set(reply))
        text = httpx.Response(200, json=reply).text
        for secret in ("secret-model", "because-secret", "gold", "expected", '"purpose"', '"seed"', '-a"', '-b"'):
            assert secret not in text
        running_app.call(rater, "vote", {"lease": reply["lease"], "verdict": {"outcome": "both_bad"}})
    assert len(set(map(frozenset, seen))) == 1  # gold has the very same fields
    assert "secret" not in rater.get("/rate/config").text
    assert "secret" not in rater.get("/rate/").text


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/file=/etc/passwd", "/file=/etc/passwd", "/gradio_api/file/etc/passwd", "/gradio_api/file=../votes.db",
     "/static/../../../../../../etc/passwd", "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/assets/..%2f..%2froutes.py",
     "/gradio_api/proxy=https://example.org/", "/gradio_api/stream/x/0/1/playlist.m3u8", "/gradio_api/vibe-code",
     "/monitoring", "/gradio_api/queue/status", "/gradio_api/deep_link", "/svelte/../../../routes.py"],
)  # fmt: skip
@pytest.mark.parametrize("page", ["/rate", "/admin"])
def test_no_file_and_no_proxy_is_served_even_to_an_administrator(running_app: Any, page: str, path: str) -> None:
    client = running_app.sign_in("root", "administrator")
    reply = client.get(page + path)
    assert reply.status_code in (400, 403, 404)
    assert "root:" not in reply.text


@pytest.mark.parametrize(
    "path", ["/desk/../store.py", "/desk/%2e%2e/store.py", "/desk/..%2fstore.py", "/desk//etc/passwd"]
)
def test_our_own_static_files_stay_in_their_folder(running_app: Any, path: str) -> None:
    reply = httpx.get(running_app.url + path)
    assert reply.status_code == 404
    assert "import" not in reply.text


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/api/predict",
     "/gradio_api/call/vote", "/gradio_api/vibe-edit", "/gradio_api/undo-vibe-edit", "/gradio_api/reset", "/login",
     "/gradio_api/cancel", "/gradio_api/process_recording", "/gradio_api/run-history/connect"],
)  # fmt: skip
def test_gradios_other_doors_are_walled_up(running_app: Any, path: str) -> None:
    assert running_app.sign_in("eve").post("/rate" + path, json={}).status_code == 404


@pytest.mark.parametrize(
    "function", ["preprocess", "postprocess", "__init__", "get_config", "functions", "upload", "", None, 7]
)
def test_only_the_listed_functions_can_be_called(running_app: Any, function: Any) -> None:
    reply = running_app.call(running_app.sign_in("eve"), function)
    assert reply.status_code >= 400


@pytest.mark.parametrize(
    "headers",
    [{"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:1"},
     {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}],
)  # fmt: skip
def test_a_post_from_another_site_does_nothing(running_app: Any, comparison: Make, headers: dict[str, str]) -> None:
    _work(running_app, comparison, "csrf-0")
    ada = running_app.sign_in("ada")
    lease = running_app.call(ada, "begin")["screen"]["lease"]
    before = _votes(running_app)
    data = {"lease": lease, "verdict": {"outcome": "both_bad"}}
    component = running_app.component("/rate")
    body = {"data": data, "component_id": component, "fn_name": "vote", "session_hash": "abc"}
    assert ada.post("/rate/gradio_api/component_server/", json=body, headers=headers).status_code == 403
    for path in ("/logout", "/logout/everywhere", "/login"):
        assert ada.post(path, headers=headers).status_code == 403
    assert _votes(running_app) == before
    assert running_app.call(ada, "begin")["ok"]


def test_too_much_and_nonsense_are_refused(running_app: Any, comparison: Make) -> None:
    _work(running_app, comparison, "size-0")
    ada = running_app.sign_in("ada")
    lease = running_app.call(ada, "begin")["screen"]["lease"]
    address, before = "/rate/gradio_api/component_server/", _votes(running_app)
    head = {"content-type": "application/json"}
    assert ada.post(address, content=b"x" * 300_000, headers=head).status_code == 413
    component = running_app.component("/rate")

    def stream() -> Any:
        yield f'{{"component_id":{component},"fn_name":"vote","session_hash":"a","data":{{"lease":"{lease}",'.encode()
        yield b'"verdict":{"outcome":"both_bad","comment":"'
        for _ in range(40):
            yield b"x" * 10_000
        yield b'"}}}'

    with contextlib.suppress(httpx.RemoteProtocolError):  # cut off: as good
        assert ada.post(address, content=stream(), headers=head).status_code >= 400  # without a length
    for nonsense in (b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"data": 1}', b"[" * 100_000):
        assert ada.post(address, content=nonsense, headers=head).status_code >= 400
    for data in (None, [], {}, {"lease": lease}, {"lease": [lease], "verdict": {}}, "text", 7,
                 {"lease": lease, "verdict": {"outcome": "x"}},
                 {"lease": lease, "verdict": {"outcome": "both_bad"}, "more": 1}):  # fmt: skip
        reply = running_app.call(ada, "vote", data)
        assert reply["ok"] is False
        assert reply["code"] in ("malformed", "no_lease")
    assert _votes(running_app) == before
    assert httpx.get(running_app.url + "/health").json() == {"ok": True}


def test_scripts_in_texts_reach_the_browser_as_text(running_app: Any, comparison: Make) -> None:
    attack = "<img src=x onerror=alert(1)><script>alert(1)</script>[x](javascript:alert(1))"
    with running_app.store.write() as connection:  # this rater must get this comparison
        connection.execute(update(schema.comparisons).values(withdrawn=True))
    _work(running_app, comparison, "xss-0", attack, "plain " + attack, question=attack)
    ada = running_app.sign_in("ada")
    screen = running_app.call(ada, "begin")["screen"]
    for html in (screen["prompt"][0]["html"], *(answer["html"] for answer in screen["answers"])):
        assert "&lt;script" in html
        assert "<script" not in html
        assert "<img" not in html
        assert "href" not in html


def test_a_name_cannot_carry_markup_and_an_invitation_works_once(running_app: Any) -> None:
    token = people.invite(running_app.store, "rater", created_by="root")
    client = httpx.Client(base_url=running_app.url)
    for name in ("<script>alert(1)</script>", "a b", "", "../x", "x" * 80, "ada\0"):
        reply = client.post(f"/invite/{token}", data={"name": name, "password": PASSWORD})
        assert reply.status_code in (400, 422)
        assert "<script>alert" not in reply.text
    assert client.post(f"/invite/{token}", data={"name": "weak", "password": "short"}).status_code == 400
    assert client.post(f"/invite/{token}", data={"name": "weak-name", "password": "weak-name-2024"}).status_code == 400
    entered = client.post(f"/invite/{token}", data={"name": "once.only", "password": PASSWORD})
    assert (entered.status_code, entered.headers["location"]) == (303, "/rate")
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    again = httpx.post(f"{running_app.url}/invite/{token}", data={"name": "twice", "password": PASSWORD})
    assert again.status_code == 400
    assert "already used" in again.text
    assert "already used" in httpx.get(f"{running_app.url}/invite/invented").text


def test_the_first_link_makes_one_administrator_and_there_is_no_default_account(running_app: Any) -> None:
    with running_app.store.read() as connection:
        stored = connection.execute(select(schema.accounts.c.password_hash)).scalars().all()
    assert all(one is None or one.startswith("$argon2id$") for one in stored)
    made = httpx.post(running_app.administrator_link, data={"name": "the.first", "password": PASSWORD})
    assert made.headers["location"] == "/admin"
    assert (
        httpx.post(running_app.administrator_link, data={"name": "the.second", "password": PASSWORD}).status_code == 400
    )
    assert people.first_administrator(running_app.store) is None
    for name, password in (("admin", "admin"), ("root", ""), ("administrator", "password"), ("the.first", "")):
        assert _sign_in(running_app, name, password).status_code == 400


def _account(app: Any, name: str) -> None:
    row = {"id": name, "name": name, "role": "rater", "state": "active", "created": now(), "guidelines_read": 0,
           "trial_passed": False, "password_hash": hash_password(PASSWORD, name)}  # fmt: skip
    with app.store.write() as connection:
        connection.execute(insert(schema.accounts).values(row))


def _sign_in(app: Any, name: str, password: str, after: str = "/rate") -> httpx.Response:
    return httpx.post(f"{app.url}/login", data={"name": name, "password": password, "next": after}, timeout=60)


def test_guessing_a_password_locks_the_account_even_for_the_right_one(running_app: Any) -> None:
    _account(running_app, "guessed")
    assert [_sign_in(running_app, "guessed", f"wrong {i}").status_code for i in range(5)] == [400] * 5
    locked = _sign_in(running_app, "guessed", PASSWORD)
    assert locked.status_code == 429
    assert "Too many failed attempts" in locked.text
    with running_app.store.write() as connection:
        past = now() - timedelta(seconds=1)
        connection.execute(update(schema.throttles).values(locked_until=past, failures=0))
    assert _sign_in(running_app, "guessed", PASSWORD).status_code == 303
    refused = [line for line in running_app.store.audit_trail(subject="guessed") if line["action"] == "session.refused"]
    assert len(refused) == 5


def test_guesses_side_by_side_count_as_well(running_app: Any) -> None:
    _account(running_app, "stormed")
    codes: list[int] = []

    def guess(at: int) -> None:
        codes.append(_sign_in(running_app, "stormed", f"wrong {at}").status_code)

    threads = [threading.Thread(target=guess, args=(at,)) for at in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes.count(400) == 5
    assert codes.count(429) == 11
    with running_app.store.write() as connection:
        connection.execute(update(schema.throttles).values(locked_until=None, failures=0))


def test_an_unknown_name_gets_the_same_answer_as_a_wrong_password(running_app: Any) -> None:
    _account(running_app, "known")
    known = _sign_in(running_app, "known", "wrong password")
    unknown = _sign_in(running_app, "nobody-here", "wrong password")
    assert known.status_code == unknown.status_code == 400
    assert known.text.replace("known", "") == unknown.text.replace("nobody-here", "")


@pytest.mark.parametrize("after", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)"])
def test_a_sign_in_leads_nowhere_else(running_app: Any, after: str) -> None:
    name = f"led{abs(hash(after))}"
    _account(running_app, name)
    assert _sign_in(running_app, name, PASSWORD, after).headers["location"] == "/rate"
    assert "evil" not in httpx.get(f"{running_app.url}/login", params={"next": after}).text


def test_sessions_end_by_age_idleness_and_everywhere_at_once(running_app: Any) -> None:
    clients = [running_app.sign_in(f"s{at}") for at in range(3)]
    sessions = schema.sessions
    with running_app.store.write() as connection:
        old, idle = clients[0].account, clients[1].account
        connection.execute(update(sessions).where(sessions.c.account_id == old).values(expires=now()))
        late = now() - timedelta(hours=13)
        connection.execute(update(sessions).where(sessions.c.account_id == idle).values(seen=late))
    assert [running_app.call(client, "begin").status_code for client in clients[:2]] == [401, 401]
    assert running_app.call(clients[2], "begin")["ok"]
    assert sign_out_everywhere(running_app.store, clients[2].account, actor="root") == 1
    assert running_app.call(clients[2], "begin").status_code == 401


def test_sign_out_closes_the_session_on_the_server(running_app: Any) -> None:
    ada = running_app.sign_in("ada")
    token = ada.cookies[COOKIE]
    assert ada.post("/logout").status_code == 303
    copied = httpx.Client(base_url=running_app.url, cookies={COOKIE: token})
    assert running_app.call(copied, "begin").status_code == 401


def test_every_page_forbids_other_hosts_frames_and_sniffing(running_app: Any) -> None:
    ada = running_app.sign_in("ada")
    for reply in (ada.get("/login"), ada.get("/rate/"), ada.get("/rate/config"), ada.get("/nothing")):
        policy = reply.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "connect-src 'self'" in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"


def test_the_last_administrator_stays(sqlite_store: Any, add_rater: Callable[..., str]) -> None:
    root = add_rater(sqlite_store, "root", role="administrator")
    with pytest.raises(Refusal, match="last administrator"):
        people.change_state(sqlite_store, root, "paused", actor="root")

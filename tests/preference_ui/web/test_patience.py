"""What one browser can hold on to: a half-sent request, and memory for sessions that it makes up."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import fastapi
import gradio as gr
import pytest
import uvicorn
from starlette.testclient import TestClient

from preference_ui.store.store import Store
from preference_ui.web import middleware, rendering, server
from preference_ui.web.sessions import share_state


async def _echo(_scope: Any, receive: Any, send: Any) -> None:
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


def _asked(store: Store, messages: list[dict[str, Any]], length: int | None = None) -> list[dict[str, Any]]:
    """What the guard answers to a post whose body comes in ``messages``, and then not at all."""
    sent: list[dict[str, Any]] = []
    waiting = list(messages)

    async def receive() -> Any:
        await asyncio.sleep(0 if waiting else 3600)
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [] if length is None else [(b"content-length", str(length).encode())]
    scope = {"type": "http", "method": "POST", "path": "/login", "headers": headers, "query_string": b""}
    guard = middleware.Guard(_echo, store=store, mounts={})
    asyncio.run(guard(scope, receive, send))
    return sent


def _part(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_that_does_not_come_is_not_waited_for(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.05)
    reply = _asked(sqlite_store, [_part(b"name=ro")], length=100)
    assert reply[0]["status"] == 408
    assert (b"connection", b"close") in reply[0]["headers"]


def test_a_refused_request_is_not_waited_for_either(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.05)
    assert _asked(sqlite_store, [_part(b"x")], length=10**9)[0]["status"] == 413


def test_a_body_in_pieces_arrives_whole_and_one_without_end_is_cut_off(sqlite_store: Store) -> None:
    reply = _asked(sqlite_store, [_part(b"a"), _part(b"b"), _part(b"c", more=False)])
    assert (reply[0]["status"], reply[1]["body"]) == (200, b"abc")
    assert _asked(sqlite_store, [_part(b"x" * 100_000)] * 3)[0]["status"] == 413


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """An app under the protocol of ours, which waits 1.5 s for a head."""
    monkeypatch.setattr(server, "HEAD_SECONDS", 1.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = free.getsockname()
    config = uvicorn.Config(_echo, *place, http=server.ImpatientProtocol, log_level="error", lifespan="off")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    yield place
    running.should_exit = True
    thread.join(timeout=10)


def _reply(connection: socket.socket) -> bytes:
    """A whole reply of :func:`_echo`, whose body ends with a piece of no length."""
    read = b""
    while not read.endswith(b"0\r\n\r\n"):
        piece = connection.recv(4096)
        assert piece, read
        read += piece
    return read


def test_half_a_head_closes_the_connection_and_an_idle_one_stays(address: tuple[str, int]) -> None:
    whole = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
    with socket.create_connection(address, timeout=30) as slow, socket.create_connection(address, timeout=30) as idle:
        idle.sendall(whole)
        assert _reply(idle).startswith(b"HTTP/1.1 200")
        slow.sendall(whole[:20])
        assert slow.recv(4096) == b""  # closed
        idle.sendall(whole)  # later than the limit, on the connection that was kept
        assert _reply(idle).startswith(b"HTTP/1.1 200")
        idle.sendall(whole[:20])
        assert idle.recv(4096) == b""


def test_a_browser_that_names_new_sessions_fills_no_memory() -> None:
    app = fastapi.FastAPI()

    def hello(data: Any) -> Any:
        return data

    with gr.Blocks() as page:
        gr.HTML(html_template="<p></p>", server_functions=[hello])
    gr.mount_gradio_app(app, page, "/rate")
    share_state(app, "/rate", page)
    client = TestClient(app)
    component = next(one["id"] for one in client.get("/rate/config").json()["components"] if one["type"] == "html")
    body = {"data": 7, "component_id": component, "fn_name": "hello"}
    for at in range(30):
        reply = client.post("/rate/gradio_api/component_server/", json=body | {"session_hash": f"new-{at}"})
        assert reply.json() == 7
    [mount] = [route for route in app.routes if getattr(route, "path", "") == "/rate"]
    assert len(mount.app.state_holder.session_data) == 1  # type: ignore[attr-defined]


def test_code_is_coloured_within_bounds_and_shown_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "```python\nfor x in []:\n    pass  # {}\n```".format
    assert 'class="k"' in rendering.to_html(text("short"))
    long = rendering.to_html(text("x" * rendering.MAX_COLOURED))
    assert 'class="k"' not in long
    assert "for x in []" in long
    monkeypatch.setattr(rendering, "COLOUR_SECONDS", 0.0)
    late = rendering.to_html(text("late"))
    assert 'class="k"' not in late
    assert "pass  # late" in late

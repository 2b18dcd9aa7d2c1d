"""An OpenAI-compatible server on a real socket, as well-behaved or as bad as a test asks for."""

import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from alignment.records import Comparison, Message, Prompt, Response, Sampling


@dataclass
class Answer:
    """One response of the server. ``text`` is the model's; the rest is how it misbehaves."""

    text: str = ""
    status: int = 200
    body: bytes | None = None  # instead of a completion
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # before it answers
    drip: float = 0.0  # seconds between the bytes of the answer
    hang_up: bool = False  # closes the connection half-way
    usage: Any = None  # None: ten tokens in, two out


Behave = Callable[[dict[str, Any], int], Answer]


class FakeServer:
    """``behave`` maps a request's JSON, and how many requests came before it, to an answer."""

    def __init__(self) -> None:
        self.behave: Behave = lambda _body, _number: Answer('{"verdict": "tie"}')
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.running = 0
        self.most_running = 0
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with server.lock:
                    number = len(server.requests)
                    server.requests.append(body)
                    server.headers.append({name.lower(): value for name, value in self.headers.items()})
                    server.times.append(time.monotonic())
                    server.running += 1
                    server.most_running = max(server.most_running, server.running)
                try:
                    self._answer(server.behave(body, number))
                except (BrokenPipeError, ConnectionResetError):
                    pass
                finally:
                    with server.lock:
                        server.running -= 1

            def _answer(self, answer: Answer) -> None:
                time.sleep(answer.seconds)
                content = answer.body
                if content is None:
                    usage = answer.usage if answer.usage is not None else {"prompt_tokens": 10, "completion_tokens": 2}
                    choice = {"message": {"role": "assistant", "content": answer.text}, "finish_reason": "stop"}
                    content = json.dumps({"choices": [choice], "usage": usage}).encode()
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content) + (100 if answer.hang_up else 0)))
                self.end_headers()
                for place in range(0, len(content), 1 if answer.drip else max(1, len(content))):
                    self.wfile.write(content[place : place + 1] if answer.drip else content)
                    self.wfile.flush()
                    time.sleep(answer.drip)
                if answer.hang_up:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True

            def log_message(self, *_arguments: Any) -> None:
                pass

        return Handler


def shown(body: dict[str, Any]) -> dict[str, str]:
    """What a request puts before the judge: the text between its tags, by the tag's name."""
    found: dict[str, str] = {}
    name, lines = "", list[str]()
    for line in body["messages"][-1]["content"].splitlines():
        if line.startswith("<") and not name:
            name, lines = line[1:].split()[0], []
        elif line.startswith(f"</{name} "):
            found[name], name = "\n".join(lines), ""
        else:
            lines.append(line)
    return found


def prefers_shorter(body: dict[str, Any], _number: int) -> Answer:
    """A server whose model likes the shorter answer, in every form."""
    texts = shown(body)
    fields = (
        body["response_format"]["json_schema"]["schema"]["properties"] if "response_format" in body else {"verdict": 0}
    )
    said: dict[str, Any] = {"reason": "it is shorter"} if "reason" in fields else {}
    if "score" in fields:
        said["score"] = max(1, 10 - len(texts["answer"]) // 5)
    else:
        letters = sorted((len(text), name[-1]) for name, text in texts.items() if name.startswith("answer-"))
        if "ranking" in fields:
            said["ranking"] = [letter for _length, letter in letters]
        else:
            said["verdict"] = "tie" if letters[0][0] == letters[1][0] else letters[0][1]
    return Answer(json.dumps(said))


def pairs(*texts: tuple[str, str]) -> list[Comparison]:
    """Comparisons of two answers, each under a prompt of its own."""
    made = []
    for number, both in enumerate(texts):
        prompt = Prompt(id=f"p{number}", messages=(Message(role="user", content=f"Question {number}?"),))
        responses = tuple(
            Response(id=f"{number}{side}", prompt_id=prompt.id, text=text, model="m", sampling=Sampling(), seed=0,
                     tokens=1, finished=True)
            for side, text in zip("lr", both, strict=True)
        )  # fmt: skip
        made.append(Comparison(id=f"c{number}", prompt=prompt, responses=responses))
    return made

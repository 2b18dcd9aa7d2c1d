"""A model's server that starts in no time: what it answers is the version that it was started for.

``python -m tests.flows.serving.small_server WORKSPACE PORT``, with the version on standard input, as the real one. The
version's run says how it behaves: ``broken`` (does not come up), ``slow`` (takes its time), else at once.
"""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

STEP_SECONDS = 0.05


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # in chunks, as the real one: an end that is not the end can be told
    version: dict[str, object]

    def do_GET(self) -> None:
        self._send(b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = {"version": self.version["version"], "asked": body}
        if not body.get("stream"):
            time.sleep(body.get("seconds", STEP_SECONDS))
            self._send(json.dumps(said).encode())
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        event = f"data: {json.dumps(said)}\n\n".encode()
        for _ in range(4):
            self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
            self.wfile.flush()
            time.sleep(body.get("seconds", STEP_SECONDS) / 4)
        self.wfile.write(b"0\r\n\r\n")

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def main(root: Path, port: int) -> None:
    version = json.loads(sys.stdin.readline())
    Handler.version = version
    if version["run"] == "broken":
        raise SystemExit("these weights are of no model")
    home = root / "serving" / version["name"]
    home.mkdir(parents=True, exist_ok=True)
    (home / f"{version['name']}-v{version['version']}.json").write_text(json.dumps({"defaults": {"temperature": 0.0}}))
    time.sleep(1.0 if version["run"] == "slow" else 0.0)
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # until the parent has gone


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

"""The part of a hub's interface that the product uses, over real HTTP: it keeps what it is sent, and gives it back."""

import base64
import hashlib
import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 40


class Hub(ThreadingHTTPServer):
    """The part of a hub's interface that a push uses, over HTTP: it keeps what it is sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.refuses = False

    def environment(self, home: Path, token: str) -> dict[str, str]:
        """What a process needs to take this for its hub."""
        kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        return kept | {
            "HF_ENDPOINT": self.url, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home / "hf")
        }  # fmt: skip

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def _send(self, code: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        hub, body = self.server, self._read()
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.refuses:
            self._send(403, {"error": "You may not write here"})
        elif self.path == "/api/repos/create":
            hub.created.append(json.loads(body))
            self._send(200, {"url": f"{hub.url}/org/name"})
        elif self.path in ("/api/models/org/name/preupload/main", "/api/datasets/org/name/preupload/main"):
            files = [
                {"path": one["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular"}
                for one in json.loads(body)["files"]
            ]  # fmt: skip
            self._send(200, {"files": files})
        elif self.path.endswith("/org/name.git/info/lfs/objects/batch"):
            objects = [
                {"oid": one["oid"], "size": one["size"], "authenticated": True,
                 "actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]  # fmt: skip
            self._send(200, {"transfer": "basic", "objects": objects})
        elif self.path.startswith(("/api/models/org/name/commit/main", "/api/datasets/org/name/commit/main")):
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.objects[value["oid"]]
            self._send(200, {"commitUrl": f"{hub.url}/org/name/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._send(200, {})

    def do_PUT(self) -> None:
        self.server.objects[self.path.rpartition("/")[2]] = self._read()
        self._send(200, {})

    def do_HEAD(self) -> None:
        self._give(body=False)

    def do_GET(self) -> None:
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.refuses:
            self._send(403, {"error": "You may not read here"})
        elif self.path.startswith("/datasets/org/name/resolve/"):
            self._give(body=True)
        elif "/absent" in self.path:
            self._send(404, {"error": "Repository not found"})
        else:
            siblings = [{"rfilename": name} for name in self.server.files]
            self._send(200, {"sha": COMMIT, "id": "org/name", "siblings": siblings})

    def _give(self, *, body: bool) -> None:
        data = self.server.files[unquote(urlsplit(self.path).path.partition(f"/resolve/{COMMIT}/")[2])]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", hashlib.sha1(data).hexdigest())
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

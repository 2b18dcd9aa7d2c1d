"""The page of ``rlhf up``: where everything is and how it is, the runs, the stages at work, the raters' queues.

It is for this machine alone: it listens on the loopback address and answers to that name only, so that no page of
another site can read it through a browser here.
"""

import html
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any

from alignment.workspace import Workspace
from flows.monitoring.prometheus import exposition, gauge, stage_families, stages_at_work
from flows.services.supervisor import Supervisor

RUNS = 8  # the newest
QUEUES_SECONDS = 10.0
REPORT = re.compile(r"/runs/([a-z][a-z0-9_-]*-\d+)/(report\.html|report\.json)")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


class Status:
    """What the page shows, read anew when asked; the queues now and then, beside."""

    def __init__(self, supervisor: Supervisor, space: Workspace) -> None:
        self.supervisor, self.space = supervisor, space
        self._queues: tuple[float, list[dict[str, Any]]] = (float("-inf"), [])
        self._reading = threading.Lock()

    def read(self) -> dict[str, Any]:
        """The services, the stages at work, the newest runs and the queues, as JSON."""
        services = [
            {"name": child.name, "state": child.state, "url": child.url, "restarts": child.restarts,
             "problem": child.problem, "log": str(child.log)}
            for child in self.supervisor.children
        ]  # fmt: skip
        return {
            "up": self.supervisor.is_up, "workspace": str(self.space.root), "services": services,
            "stages": list(self._stages()), "runs": list(self._runs()), "queues": self.queues(),
        }  # fmt: skip

    def _stages(self) -> Iterator[dict[str, Any]]:
        for stage, text in stages_at_work(self.space):
            values = dict(
                re.findall(r"^(rlhf_stage_(?:step|steps|tokens_per_second))\{.*\} (\S+)$", text, re.MULTILINE)
            )
            yield {"name": stage} | {name.removeprefix("rlhf_stage_"): float(value) for name, value in values.items()}

    def _runs(self) -> Iterator[dict[str, Any]]:
        found = sorted(self.space.root.glob("runs/*/report.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in found[:RUNS]:
            report = json.loads(path.read_text("utf-8"))
            states = {stage["status"] for stage in report["stages"]}
            gate = report.get("gate")
            ending = "failed" if "failed" in states else "waiting" if "waiting" in states else "finished"
            if ending == "finished" and gate:
                ending = "promoted" if gate["passed"] else "refused"
            made = report.get("registered")
            yield {
                "name": path.parent.name, "ending": ending, "finished": report["finished"],
                "seconds": report["seconds"], "version": f"{made['name']} v{made['version']}" if made else "",
                "report": f"/runs/{path.parent.name}/report.html",
            }  # fmt: skip

    def queues(self) -> list[dict[str, Any]]:
        """How the raters' queues stood ten seconds ago at most, or as soon as they have been read. Never waits."""
        read, known = self._queues
        app_is_up = any(child.name == "app" and child.state == "up" for child in self.supervisor.children)
        if app_is_up and time.monotonic() - read > QUEUES_SECONDS and self._reading.acquire(blocking=False):
            threading.Thread(target=self._read_queues, name="queues", daemon=True).start()
        return known

    def _read_queues(self) -> None:
        from flows.pipeline.human_votes import standings
        from preference_ui.store.store import StoreError

        try:
            self._queues = (time.monotonic(), [one.model_dump() for one in standings(self.space)])
        except StoreError:
            self._queues = (time.monotonic(), [])
        finally:
            self._reading.release()

    def metrics(self) -> str:
        """For Prometheus: the services, and the stages at work."""
        up = [({"service": child.name}, float(child.state == "up")) for child in self.supervisor.children]
        again = [({"service": child.name}, float(child.restarts)) for child in self.supervisor.children]
        services = [gauge("rlhf_service_up", up, {}), gauge("rlhf_service_restarts", again, {})]
        return exposition([*services, *stage_families(self.space)])


@contextmanager
def serve_page(supervisor: Supervisor, space: Workspace, host: str, port: int) -> Iterator[None]:
    """Serves the page from a thread for as long as the context lasts."""
    status = Status(supervisor, space)
    names = {f"{name}:{port}" for name in (host, "localhost")}
    page = resources.files("flows").joinpath("up.html").read_text("utf-8")
    body = page.replace("{{ workspace }}", html.escape(str(space.root))).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Host") not in names:
                self._send(403, "text/plain", b"this page is for this machine\n")
            elif self.path == "/":
                self._send(200, "text/html", body, POLICY)
            elif self.path == "/status.json":
                self._send(200, "application/json", json.dumps(status.read()).encode())
            elif self.path == "/health":
                self._send(
                    200 if supervisor.is_up else 503, "text/plain", b"up\n" if supervisor.is_up else b"not yet\n"
                )
            elif self.path == "/metrics":
                self._send(200, "text/plain; version=0.0.4", status.metrics().encode())
            elif (match := REPORT.fullmatch(self.path)) is not None:
                self._report(space.root / "runs" / match[1] / match[2])
            else:
                self._send(404, "text/plain", b"there is nothing here\n")

        def _report(self, path: Path) -> None:
            if not path.is_file():
                self._send(404, "text/plain", b"this run has no report yet\n")
                return
            kind = "text/html" if path.suffix == ".html" else "application/json"
            self._send(200, kind, path.read_bytes())

        def _send(self, code: int, kind: str, data: bytes, policy: str = "") -> None:
            self.send_response(code)
            self.send_header("Content-Type", f"{kind}; charset=utf-8" if ";" not in kind else kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            if policy:
                self.send_header("Content-Security-Policy", policy)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Says nothing: the page asks every two seconds."""

    server = ThreadingHTTPServer((host, port), Handler)
    thread = threading.Thread(target=server.serve_forever, name="page", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()

"""The app's metrics for Prometheus, at ``/metrics``: for whoever shows the token, and for administrators.

The token is the value of ``RLHF_METRICS_TOKEN``, sent as ``Authorization: Bearer``. Without it the page is an
administrator's alone. What raters do is public to nobody: no name of a person is a label.
"""

import hmac
import os
import time
from collections.abc import Iterator

from fastapi import Request
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from preference_ui.accounts.auth import authenticate
from preference_ui.quality.queue_stats import DeskStanding, desk_standing
from preference_ui.store.store import Store, StoreError
from preference_ui.web.middleware import session_token

TOKEN = "RLHF_METRICS_TOKEN"
AGREEMENT_SECONDS = 60.0  # how long α holds
CHANGED = 100  # comparisons whose votes are read for it, at most: the rest at the next look
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
PAGES = ("rate", "admin", "review", "arena", "desk", "login", "invite", "health", "metrics", "api")
GAUGES = {  # of each queue: the figure of QueueStanding, and what it is
    "rlhf_queue_comparisons": ("comparisons", "Comparisons in a queue."),
    "rlhf_queue_open": ("open", "Comparisons of a queue that still want votes."),
    "rlhf_queue_votes": ("votes", "Votes cast on a queue."),
    "rlhf_queue_votes_wanted": ("wanted", "Votes that a queue wants in all."),
    "rlhf_queue_raters": ("raters", "People who have voted on a queue."),
    "rlhf_queue_alpha": ("alpha", "Krippendorff's alpha of the verdicts on a queue so far."),
}
DESK = {
    "rlhf_open_leases": ("open_leases", "Comparisons in raters' hands now."),
    "rlhf_raters_at_work": ("raters_at_work", "People who voted in the last ten minutes."),
}
VOTES, LATENCY = "rlhf_votes", "rlhf_request_seconds"


class Desk(Collector):
    """Reads the store when Prometheus asks."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._alphas: dict[str, float | None] = {}
        self._known_until = float("-inf")

    def collect(self) -> Iterator[Metric]:
        """Yields the desk's figures as they are now; α as of a minute ago at most."""
        agreeing = time.monotonic() > self._known_until
        desk = desk_standing(self.store, agreeing=agreeing, at_most=CHANGED)
        if agreeing:
            self._alphas = {one.queue: one.alpha for one in desk.queues}
            self._known_until = time.monotonic() + AGREEMENT_SECONDS
        counter = CounterMetricFamily(VOTES, "Votes cast, gold and repeats included, trials not.")
        counter.add_metric([], desk.votes)
        yield counter
        for name, (field, words) in DESK.items():
            yield GaugeMetricFamily(name, words, value=getattr(desk, field))
        yield from self._queues(desk)

    def _queues(self, desk: DeskStanding) -> Iterator[Metric]:
        for name, (field, words) in GAUGES.items():
            family = GaugeMetricFamily(name, words, labels=["queue"])
            for one in desk.queues:
                value = self._alphas.get(one.queue) if field == "alpha" else getattr(one, field)
                if value is not None:
                    family.add_metric([one.queue], value)
            yield family


class AppMetrics:
    """The registry of one app: the desk, its process, and how long requests take."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.registry = CollectorRegistry()
        self.registry.register(Desk(store))
        ProcessCollector(registry=self.registry)
        labels = ["page", "method", "status"]
        self.latency = Histogram(LATENCY, "Seconds until an answer's end.", labels, buckets=BUCKETS,
                                 registry=self.registry)  # fmt: skip

    def page(self, request: Request) -> Response:
        """The text that Prometheus reads; 404 for whoever may not see it, as if there were nothing."""
        try:
            if not self._may_see(request):
                return JSONResponse({"ok": False, "code": "refused", "say": "There is nothing here."}, 404)
            return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)
        except StoreError:
            return JSONResponse({"ok": False, "code": "unavailable", "say": "The database does not answer."}, 503)

    def _may_see(self, request: Request) -> bool:
        token = os.environ.get(TOKEN, "")
        given = request.headers.get("authorization", "")
        if token and hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            return True
        account = authenticate(self.store, session_token(request.scope))
        return account is not None and account.is_administrator


class Timed:
    """ASGI middleware: how long each request took, by page, method and class of status (2xx …)."""

    def __init__(self, app: ASGIApp, *, latency: Histogram) -> None:
        self.app, self.latency = app, latency

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, started = 500, time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            first = scope["path"].split("/")[1] if "/" in scope["path"] else ""
            page = first if first in PAGES else "other"  # whatever is asked for, there are few series
            method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other"
            taken = time.perf_counter() - started
            self.latency.labels(page=page, method=method, status=f"{status // 100}xx").observe(taken)

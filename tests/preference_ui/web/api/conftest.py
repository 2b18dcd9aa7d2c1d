"""The API behind the guard, without the pages: in this process, on either database."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import fastapi
import pytest
from starlette.testclient import TestClient

from preference_ui.accounts.tokens import make_token
from preference_ui.store.store import Store
from preference_ui.web.api.application import api_app
from preference_ui.web.api.bearer import BearerDoor
from preference_ui.web.middleware import Guard


@dataclass
class Api:
    """The API on a store."""

    store: Store
    client: TestClient

    def token(self, *scopes: str, account: str | None = None, **more: Any) -> str:
        return make_token(self.store, "t", scopes, account=account, created_by="test", **more)[1]

    def get(self, path: str, token: str | None, **more: Any) -> Any:
        return self.call("GET", path, token, **more)

    def post(self, path: str, token: str | None, body: Any = None, **more: Any) -> Any:
        return self.call("POST", path, token, **({"json": body} if body is not None else {}), **more)

    def call(self, method: str, path: str, token: str | None, **more: Any) -> Any:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        return self.client.request(method, f"/api/v1{path}", headers=headers | more.pop("headers", {}), **more)


def guarded(store: Store) -> fastapi.FastAPI:
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/api/v1", api_app(store))
    app.add_middleware(Guard, store=store, mounts={}, api=BearerDoor(store))
    return app


@pytest.fixture
def api(store: Store) -> Iterator[Api]:
    """On both databases."""
    with TestClient(guarded(store)) as client:
        yield Api(store, client)


@pytest.fixture
def sqlite_api(sqlite_store: Store) -> Iterator[Api]:
    """On SQLite alone, for what no database decides."""
    with TestClient(guarded(sqlite_store)) as client:
        yield Api(sqlite_store, client)


@pytest.fixture
def voter(add_rater: Callable[..., str]) -> Callable[..., str]:
    """Adds a rater who has read the guidelines. Returns a token that votes as this one."""

    def add(api: Api, name: str, **values: object) -> str:
        add_rater(api.store, name, **({"guidelines_read": 1} | values))
        return api.token("vote", account=name)

    return add

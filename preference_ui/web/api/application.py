"""The API under /api/v1: its routes, what it says when it refuses, and the page that describes it."""

import logging
from collections.abc import Sequence
from typing import Any

import fastapi
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from alignment.errors import InputError
from preference_ui.store.errors import Refusal
from preference_ui.store.store import Store, StoreError
from preference_ui.web.api.bearer import ApiRefusal, refused
from preference_ui.web.api.models import Problem
from preference_ui.web.api.openapi_page import openapi_html
from preference_ui.web.api.queue_routes import queue_routes
from preference_ui.web.api.read_routes import read_routes
from preference_ui.web.api.vote_routes import vote_routes
from preference_ui.web.middleware import UNAVAILABLE

_log = logging.getLogger(__name__)
SUMMARY = """\
Comparisons go into the raters' queues, votes and records come out, and programs vote in the name of an account. Every
request shows a token, `Authorization: Bearer rlhf_…`, that `rlhf raters token create` has made for some scopes:
**queue** adds comparisons, withdraws them and puts them back; **read** gets votes, records and progress; **vote** draws
comparisons and judges them, blind, in the name of its account, and can do nothing else."""
STATUS = {  # of what the app refuses
    "no_account": 403, "paused": 403, "forbidden": 403, "no_lease": 404, "no_record": 404, "guidelines": 409,
    "over": 409, "expired": 409, "excluded": 409, "finished_by_others": 409, "consent": 409, "closed": 409,
}  # fmt: skip
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "No token that holds was shown."},
    403: {"model": Problem, "description": "The token has another scope, or its account may not do this."},
    404: {"model": Problem, "description": "There is no such record or lease."},
    409: {
        "model": Problem,
        "description": "The lease is over, the queue is closed, or something is to be read first.",
    },
    413: {"model": Problem, "description": "The body is over 4 MiB."},
    422: {"model": Problem, "description": "What was sent is wrong: every fault, with its row and field."},
    429: {"model": Problem, "description": "Too many wrong tokens came from this address."},
    503: {"model": Problem, "description": "The database does not answer. Nothing was changed."},
}


def api_app(store: Store) -> fastapi.FastAPI:
    """The API on an open store, to be mounted at /api/v1 behind the guard."""
    app = fastapi.FastAPI(
        title="The raters' API", version="1", description=SUMMARY, docs_url=None, redoc_url=None,
        openapi_url="/openapi.json", responses=_PROBLEMS, redirect_slashes=False,
    )  # fmt: skip
    for router in (queue_routes(store), read_routes(store), vote_routes(store)):
        app.include_router(router)

    @app.get("/docs", include_in_schema=False)
    def show_docs() -> HTMLResponse:
        return HTMLResponse(openapi_html(app.openapi()))

    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    return app


def _refusal(_request: Request, error: Any) -> Response:
    return refused(STATUS.get(error.code, 422), error.sentence, error.code)


def _refused_before(_request: Request, error: Any) -> Response:
    response: Response = error.response
    return response


def _wrong_rows(_request: Request, error: Any) -> Response:
    faults = [{"row": one.row, "field": one.field, "problem": one.problem, "remedy": one.remedy}
              for one in error.faults]  # fmt: skip
    return _told(faults, "rows")


def _wrong_fields(_request: Request, error: Any) -> Response:
    faults = [{"row": None, "field": _dotted(one["loc"]), "problem": one["msg"], "remedy": ""}
              for one in error.errors()]  # fmt: skip
    return _told(faults, "malformed")


def _told(faults: Sequence[dict[str, Any]], code: str) -> Response:
    lines = []
    for fault in faults:
        row = [] if fault["row"] is None else [f"row {fault['row']}"]
        where = ", ".join([*row, *([fault["field"]] if fault["field"] else [])])
        lines.append(": ".join(part for part in (where, "; ".join(filter(None, (fault["problem"], fault["remedy"]))))
                               if part))  # fmt: skip
    return refused(422, "\n".join(lines), code, faults=list(faults))


def _dotted(location: Sequence[Any]) -> str:
    return ".".join(map(str, location[1:] or location))  # less "body", "query" or "path"


def _unavailable(_request: Request, error: Any) -> Response:
    _log.warning("the store failed: %s", error)
    return refused(503, UNAVAILABLE, "unavailable")


def _plain(_request: Request, error: Any) -> Response:
    said = {404: "There is nothing here.", 405: "This is not done here."}.get(error.status_code, str(error.detail))
    return refused(error.status_code, said, "refused", error.headers)


_HANDLERS: dict[type[Exception], Any] = {
    Refusal: _refusal,
    ApiRefusal: _refused_before,
    InputError: _wrong_rows,
    RequestValidationError: _wrong_fields,
    StoreError: _unavailable,
    HTTPException: _plain,
}

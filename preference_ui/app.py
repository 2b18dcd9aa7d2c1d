"""The app: FastAPI with the rater's, the administrator's and the arena's Gradio pages mounted, behind the guard."""

import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from importlib.resources import files
from pathlib import Path

import fastapi
import gradio as gr
import uvicorn
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.responses import Response

from alignment.errors import Fault, InputError
from preference_ui.accounts import accounts
from preference_ui.arena.responders import Speakers
from preference_ui.arena.talks import Contestant
from preference_ui.labelling.tutorial import seed_trial
from preference_ui.snapshots.collections import Watcher, announce_to_prefect
from preference_ui.snapshots.prefect_events import show_raters
from preference_ui.store.store import Store, ping
from preference_ui.web.admin_page import administrator_page
from preference_ui.web.api.application import api_app
from preference_ui.web.api.bearer import BearerDoor
from preference_ui.web.arena_page import arena_page
from preference_ui.web.auth_pages import Door, doors
from preference_ui.web.middleware import MAX_UPLOAD, Guard, account_in
from preference_ui.web.oidc import OidcSettings, add_oidc
from preference_ui.web.prometheus import AppMetrics, Timed
from preference_ui.web.public_address import LOCAL, FromOutside, PublicAddress
from preference_ui.web.rater_page import rater_page
from preference_ui.web.review_page import review_page
from preference_ui.web.server import ImpatientProtocol
from preference_ui.web.sessions import share_state
from preference_ui.webhooks.sender import Sender

_HEAD = (  # Gradio's own head names /manifest.json
    '<link rel="icon" href="/desk/icon.svg"><link rel="apple-touch-icon" href="/desk/icon-192.png">'
    '<script src="/desk/theme.js"></script>'
)
_STYLES = ("base", "desk", "admin", "arena")
STYLES = {"/review": ("base", "review")}  # of pages that have others
_REVIEW = '<script src="/desk/review.js"></script>'
SESSIONS = 64  # whose state Gradio keeps, on a page that has one for each browser
MOUNTS: dict[str, str | None] = {"/rate": None, "/admin": "administrator", "/arena": None, "/review": "administrator"}
WITH_EVENTS = frozenset({"/review"})  # of Gradio's own components; the other pages call their handlers alone
WITH_UPLOADS = frozenset({"/review"})


def create_app(
    store: Store,
    *,
    oidc: OidcSettings | None = None,
    contestants: Sequence[Contestant] = (),
    address: PublicAddress = LOCAL,
    artifacts: Path | None = None,
) -> fastapi.FastAPI:
    """The whole app on an open store, as ASGI. ``contestants`` are the versions in the arena; without, there is none.

    ``address`` is how it is reached from outside; ``artifacts`` holds what runs have sampled, to be imported.

    Raises InputError where there are fewer than two versions to talk to, or one of them twice.
    """
    if len({one.digest for one in contestants}) < len(contestants) or len(contestants) == 1:
        raise InputError([Fault("the arena needs two different versions", "name two", field="arena")])
    speakers = Speakers(store, contestants)

    @contextlib.asynccontextmanager
    async def lifespan(_app: fastapi.FastAPI) -> AsyncIterator[None]:
        yield
        speakers.close()
        store.close()

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.include_router(doors(Door(store, oidc.name if oidc else None)))
    if oidc is not None:
        add_oidc(app, store, oidc, address)
    app.mount("/api/v1", api_app(store))
    app.mount("/desk", StaticFiles(directory=str(files("preference_ui").joinpath("static"))))
    app.add_api_route("/", lambda: RedirectResponse("/rate", 303), methods=["GET"], response_class=Response)
    icon = RedirectResponse("/desk/icon.svg", 301)
    app.add_api_route("/favicon.ico", lambda: icon, methods=["GET"], response_class=Response)
    app.add_api_route("/health", lambda: _health(store), methods=["GET"], response_class=Response)
    app.add_api_route("/manifest.json", _manifest, methods=["GET"], response_class=Response)
    metrics = AppMetrics(store)
    app.add_api_route("/metrics", metrics.page, methods=["GET"], response_class=Response)
    seed_trial(store)
    pages = {"/rate": rater_page(store, arena=bool(contestants)), "/admin": administrator_page(store)}
    pages["/review"] = review_page(store, artifacts)
    if contestants:
        pages["/arena"] = arena_page(store, speakers)
    for path, page in pages.items():
        _mount(app, page, path)
    app.add_middleware(Guard, store=store, mounts=MOUNTS, own_host=address.host, with_events=WITH_EVENTS,
                       with_uploads=WITH_UPLOADS, api=BearerDoor(store))  # fmt: skip
    app.add_middleware(Timed, latency=metrics.latency)
    app.add_middleware(FromOutside, address=address)
    return app


def _mount(app: fastapi.FastAPI, page: gr.Blocks, path: str) -> None:
    styles = (f'<link rel="stylesheet" href="/desk/{name}.css">' for name in STYLES.get(path, _STYLES))
    page.state_session_capacity = SESSIONS
    page.max_file_size = MAX_UPLOAD
    gr.mount_gradio_app(
        app,
        page,
        path,
        auth_dependency=_user,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        head=f"{''.join(styles)}{_HEAD}{_REVIEW if path == '/review' else ''}",
    )
    if path not in WITH_EVENTS:
        share_state(app, path, page)


def _manifest() -> FileResponse:
    """What a phone installs."""
    path = str(files("preference_ui").joinpath("static/app.webmanifest"))
    return FileResponse(path, media_type="application/manifest+json")


def _user(request: fastapi.Request) -> str | None:
    account = account_in(request.scope)
    return account.name if account is not None else None


def _health(store: Store) -> JSONResponse:
    alive = ping(store)
    return JSONResponse({"ok": alive}, 200 if alive else 503)


def serve(
    store_url: str,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    public_url: str | None = None,
    trusted_proxies: Sequence[str] = (),
    oidc: bool = True,
    snapshots: Path | None = None,
    artifacts: Path | None = None,
    contestants: Sequence[Contestant] = (),
) -> None:
    """Runs the app until it is stopped (``rlhf rate``). The first start prints a one-time administrator link.

    ``public_url`` is how raters reach the app, where that is not http://HOST:PORT, and ``trusted_proxies`` are the
    addresses, networks or "private" from which it is told who asks (:class:`PublicAddress`). OpenID Connect is on where
    its environment variables are set (:class:`OidcSettings`). ``snapshots`` is the folder where collections that have
    become ready are written, each announced as the Prefect event ``preferences.ready``; None watches none.
    ``contestants`` open the arena; from ``artifacts`` an administrator may import. Raises InputError and StoreError
    like :meth:`Store.open` and :func:`create_app`.
    """
    outside = PublicAddress.of(public_url, trusted_proxies)
    store = Store.open(store_url)
    provider = OidcSettings.from_environment() if oidc else None
    app = create_app(store, oidc=provider, contestants=contestants, address=outside, artifacts=artifacts)
    address = (outside.url or f"http://{'localhost' if host in ('127.0.0.1', '::1') else host}:{port}").rstrip("/")
    token = accounts.first_administrator(store)
    if token is not None:
        print(
            f"First start. Become the administrator (works once, for 3 days):\n  {address}/invite/{token}", flush=True
        )
    print(f"Raters work at {address}/rate", file=sys.stderr, flush=True)
    watcher = None if snapshots is None else Watcher(store, snapshots, announce_to_prefect, show=show_raters)
    if watcher is not None:
        watcher.start()
    sender = Sender(store)
    sender.start()
    # Browsers reuse a connection after a minute of reading; one closed under them would look like a failed vote.
    config = uvicorn.Config(
        app, host, port, timeout_keep_alive=120, timeout_graceful_shutdown=5, log_level="warning", access_log=False,
        http=ImpatientProtocol, proxy_headers=False,
    )  # fmt: skip
    try:
        uvicorn.Server(config).run()
    finally:
        sender.stop()
        if watcher is not None:
            watcher.stop()

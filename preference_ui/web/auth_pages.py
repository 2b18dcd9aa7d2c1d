"""The pages in front of the app: sign in, accept an invitation, sign out. Plain HTML forms, without Gradio."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, StrictUndefined
from starlette.responses import Response

from preference_ui.accounts import accounts, links
from preference_ui.accounts.auth import authenticate, sign_in, sign_out, sign_out_everywhere
from preference_ui.store.errors import Refusal
from preference_ui.store.store import Store, StoreError
from preference_ui.web.languages import COOKIE as LANGUAGE
from preference_ui.web.languages import RIGHT_TO_LEFT, language_of, translate
from preference_ui.web.middleware import COOKIE, UNAVAILABLE, session_token

AFTER = (
    "/rate",
    "/admin",
    "/arena",
    "/review",
)  # where a sign-in may lead; nothing else, so that a link cannot send people away
WELCOME = "Compare answers, calmly. Your votes teach the next model."
TITLES = {"sign_in": "Which answer is better?", "accept": "Welcome", "join": "Welcome", "closed": "This link is closed"}
INVITED = {"rater": "You are invited as a rater.", "administrator": "You are invited as an administrator."}
Text = Annotated[str, Form(max_length=300)]


@dataclass(frozen=True, slots=True)
class Door:
    """What the pages need: the store, and the name of the OpenID provider where there is one."""

    store: Store
    oidc_name: str | None = None


def doors(door: Door) -> APIRouter:
    """The routes /login, /invite/TOKEN, /join/TOKEN, /logout and /logout/everywhere."""
    router = APIRouter()

    @router.get("/login")
    def show_sign_in(request: Request, next: str = "/rate") -> Response:  # noqa: A002 (the name in the address)
        return _page(request, door, form="sign_in", after=next)

    @router.post("/login")
    def do_sign_in(request: Request, name: Text = "", password: Text = "", next: Text = "/rate") -> Response:  # noqa: A002
        def enter() -> Response:
            return _enter(request, sign_in(door.store, name, password, _address(request)), next)

        return _attempt(request, door, enter, form="sign_in", name=name, after=next)

    @router.get("/invite/{token}")
    def show_invitation(request: Request, token: str) -> Response:
        def show() -> Response:
            role = accounts.invitation_role(door.store, token)
            return _page(request, door, form="accept", lead=INVITED[role], invitation=token)

        return _attempt(request, door, show, form="closed")

    @router.post("/invite/{token}")
    def accept_invitation(request: Request, token: str, name: Text = "", password: Text = "") -> Response:
        def enter() -> Response:
            role = accounts.invitation_role(door.store, token)
            _, session = accounts.accept(door.store, token, name, password)
            return _enter(request, session, "/admin" if role == "administrator" else "/rate")

        return _attempt(request, door, enter, form="accept", name=name, invitation=token)

    @router.get("/join/{token}")
    def show_link(request: Request, token: str) -> Response:
        def show() -> Response:
            _require_id(request, links.link_parameter(door.store, token))
            return _page(request, door, form="join", lead=INVITED["rater"])

        return _attempt(request, door, show, form="closed")

    @router.post("/join/{token}")
    def follow_link(request: Request, token: str) -> Response:
        def enter() -> Response:
            came = _require_id(request, links.link_parameter(door.store, token))
            return _enter(request, links.join(door.store, token, came), "/rate")

        return _attempt(request, door, enter, form="closed")

    @router.post("/logout")
    def leave(request: Request) -> Response:
        sign_out(door.store, session_token(request.scope) or "")
        return _left()

    @router.post("/logout/everywhere")
    def leave_everywhere(request: Request) -> Response:
        account = authenticate(door.store, session_token(request.scope))
        if account is not None:
            sign_out_everywhere(door.store, account.id, actor=account.name)
        return _left()

    return router


def _require_id(request: Request, parameter: str) -> str:
    """What the address says about who comes. Raises Refusal where it does not."""
    came = request.query_params.get(parameter, "")
    if not links.EXTERNAL_ID.fullmatch(came):
        raise Refusal("external_id", links.NO_ID)
    return came


def _attempt(request: Request, door: Door, act: Callable[[], Response], **shown: Any) -> Response:
    try:
        return act()
    except Refusal as refusal:
        status = 429 if refusal.code == "locked" else 400
        return _page(request, door, problem=refusal.sentence, status=status, **shown)
    except StoreError:
        return _page(request, door, problem=UNAVAILABLE, status=503, **shown)


def _enter(request: Request, session: str, after: str) -> Response:
    response = RedirectResponse(after if after in AFTER else "/rate", 303)
    set_session(request, response, session)
    return response


def set_session(request: Request, response: Response, session: str) -> None:
    """Gives the browser its session: unreadable for scripts, not sent along by other sites' posts."""
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, session, max_age=7 * 24 * 3600, httponly=True, samesite="lax", secure=secure, path="/")


def _left() -> Response:
    response = RedirectResponse("/login", 303)
    response.delete_cookie(COOKIE, path="/")
    return response


def _page(
    request: Request,
    door: Door,
    *,
    form: str,
    problem: str = "",
    lead: str = "",
    name: str = "",
    after: str = "/rate",
    invitation: str = "",
    status: int = 200,
) -> Response:
    language = language_of(request.cookies.get(LANGUAGE), request.headers.get("accept-language", ""))
    say = partial(translate, language)
    oidc_href = ("/login/oidc" + (f"?invitation={invitation}" if invitation else "")) if door.oidc_name else ""
    body = _template().render(
        _=say,
        language=language,
        direction="rtl" if language in RIGHT_TO_LEFT else "ltr",
        title=say(TITLES[form]),
        lead=say(lead or (WELCOME if form == "sign_in" else "")),
        problem=say(problem),
        form=form,
        name=name,
        next=after if after in AFTER else "/rate",
        base=request.scope.get("root_path", ""),
        oidc_href=oidc_href,
        oidc_name=door.oidc_name,
    )
    return HTMLResponse(body, status)


def _template() -> Any:
    source = files("preference_ui").joinpath("templates/door.html").read_text("utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined).from_string(source)


def _address(request: Request) -> str:
    return request.client.host if request.client else "unknown"

"""``rlhf rate`` and ``rlhf raters``: the app, and its people from the shell."""

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from getpass import getpass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from alignment.errors import Fault, InputError
from alignment.workspace import Workspace
from flows.console import PlainConsole, print_json
from flows.failures import open_workspace
from flows.services import servers
from flows.services.named_servers import require_registry, require_store
from flows.services.process_records import anybody_at_work
from flows.shutdown import TERMINATED

if TYPE_CHECKING:
    from preference_ui.store.store import Store


def rate_command(
    workspace: Path,
    url: str | None,
    host: str,
    port: int,
    public_url: str | None,
    arena: tuple[str, str] | None,
    temperature: float,
    max_new_tokens: int,
    *,
    proxies: Sequence[str] = (),
) -> None:
    """Serves the raters' app until it is stopped, and says on the run's Prefect server when votes are enough.

    ``arena`` names two versions that people may talk to; they answer in this process.
    """
    require_place(host, port)
    from preference_ui.web.public_address import PublicAddress

    PublicAddress.of(public_url, proxies)  # before anything is started
    space = open_workspace(workspace)
    servers.quiet_environment(space)
    require_store(url)
    for reference in arena or ():
        require_registry(reference, space)
    with _prefect(space):
        _serve(space, url, host, port, public_url, proxies, arena, temperature, max_new_tokens)


@contextmanager
def _prefect(space: Workspace) -> Iterator[None]:
    """The Prefect server, for as long as the app is served: raters need not wait for it, what cannot be said is said
    again.

    One that is started here ends with the app, by SIGTERM too, unless a run of the workspace has found it meanwhile.
    """
    before = signal.signal(signal.SIGTERM, _leave)  # uvicorn sends itself the signal that ended it once more
    started = False
    try:
        server, started = servers.begin_or_find(space, "prefect")
        os.environ["PREFECT_API_URL"] = server.api
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what follows takes no time, and is not to be left half done
        if started and not anybody_at_work(space.root):
            os.environ.pop("PREFECT_API_URL", None)
            servers.stop(space, "prefect")
        signal.signal(signal.SIGTERM, before)


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)


def _serve(
    space: Workspace,
    url: str | None,
    host: str,
    port: int,
    public_url: str | None,
    proxies: Sequence[str],
    arena: tuple[str, str] | None,
    temperature: float,
    max_new_tokens: int,
) -> None:
    from flows.pipeline import human_votes
    from preference_ui.app import serve

    where, contestants = human_votes.store_url(space, url), []
    if arena is not None:
        from alignment.records import Sampling
        from flows.services import arena_models as ring

        sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens)
        contestants = ring.contestants(arena, space, sampling)
    serve(where, host=host, port=port, public_url=public_url, trusted_proxies=proxies,
          snapshots=human_votes.snapshots(space), contestants=contestants)  # fmt: skip


def require_place(host: str, port: int) -> None:
    """Raises InputError where nothing can listen at a host and port: there is none such here, or it is taken."""
    if not 0 <= port < 65536:
        raise InputError([Fault(f"{port} is no port", "give one from 1 to 65535", field="--port")])
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        problem = f"{host!r} is no address of this machine: {error}"
        raise InputError([Fault(problem, "give 127.0.0.1, 0.0.0.0 or a name of it", field="--host")]) from None
    family, kind, protocol, _name, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind(address)
        except OSError as error:
            problem = f"{host}:{port} cannot be listened at: {(error.strerror or str(error)).lower()}"
            raise InputError([Fault(problem, "give another --port or --host", field="--port")]) from None


def raters_list_command(workspace: Path, url: str | None, *, as_json: bool) -> None:
    """Prints every account."""
    from preference_ui.accounts.accounts import people

    with raters_store(workspace, url) as store:
        found = people(store)
    print_rows([{name: row[name] for name in ("name", "role", "state", "created")} for row in found], as_json=as_json)


def raters_invite_command(
    workspace: Path, url: str | None, role: Literal["rater", "administrator"], note: str, public_url: str | None
) -> None:
    """Prints a one-time link, or its path where it is not said how the app is reached."""
    from preference_ui.accounts.accounts import invite
    from preference_ui.web.public_address import PublicAddress

    address = PublicAddress.of(public_url)
    with raters_store(workspace, url) as store:
        token = invite(store, role, created_by="shell", note=note)
    print(f"{address.url or ''}/invite/{token}")


def raters_invitations_command(workspace: Path, url: str | None, revoke: str | None, *, as_json: bool) -> None:
    """Prints the invitations that still work, or ends one of them."""
    from preference_ui.accounts.accounts import pending_invitations, revoke_invitation

    with raters_store(workspace, url) as store:
        if revoke is not None:
            revoke_invitation(store, revoke, actor="shell")
        found = pending_invitations(store)
    print_rows(found, as_json=as_json)


def raters_password_command(workspace: Path, url: str | None, name: str) -> None:
    """Sets an account's password, which is asked for and never shown."""
    from preference_ui.accounts.accounts import set_password

    with raters_store(workspace, url) as store:
        if sys.stdin.isatty():
            password = getpass("New password: ")
            if getpass("Once more: ") != password:
                raise InputError([Fault("the two passwords differ", "give the same one twice", field=name)])
        else:
            password = sys.stdin.readline().rstrip("\n")
        set_password(store, name, password, actor="shell")
    print(f"{name} has a new password, and is signed out everywhere")


def raters_unlock_command(workspace: Path, url: str | None, name: str) -> None:
    """Forgets the failed sign-ins at an account."""
    from preference_ui.accounts.accounts import people
    from preference_ui.accounts.throttle import unlock
    from preference_ui.store.errors import Refusal

    with raters_store(workspace, url) as store:
        if name not in {row["name"] for row in people(store)}:
            raise Refusal("no_account", "There is no such account.")
        unlock(store, name, actor="shell")
    print(f"{name} can sign in again")


@contextmanager
def raters_store(workspace: Path, url: str | None) -> Iterator["Store"]:
    """The raters' store; what it refuses is a user's mistake here."""
    require_store(url)
    space = open_workspace(workspace)
    servers.quiet_environment(space)
    from flows.pipeline.human_votes import store_url
    from preference_ui.store.errors import Refusal
    from preference_ui.store.store import Store

    store = Store.open(store_url(space, url))
    try:
        yield store
    except Refusal as refusal:
        raise InputError([Fault(refusal.sentence, "see `rlhf raters list` and `rlhf raters invitations`")]) from None
    finally:
        store.close()


def print_rows(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Rows for a person, a line each, or as JSON."""
    if as_json:
        print_json(json.dumps([dict(row) for row in rows], default=str, indent=2))
        return
    for row in rows:
        PlainConsole().print(
            "  ".join(str(value)[:19] if name != "note" else str(value) for name, value in row.items())
        )

"""`rlhf rate`."""

import os
import socket
from pathlib import Path

from alignment.errors import Fault, InputError
from flows.failures import open_workspace
from flows.services import servers
from flows.services.named_servers import require_registry, require_store


def rate_command(
    workspace: Path,
    url: str | None,
    host: str,
    port: int,
    public_url: str | None,
    arena: tuple[str, str] | None,
    temperature: float,
    max_new_tokens: int,
) -> None:
    """Serves the raters' app until it is stopped, and says on the run's Prefect server when votes are enough.

    ``arena`` names two versions that people may talk to; they answer in this process.
    """
    _require_place(host, port)
    space = open_workspace(workspace)
    servers.quiet_environment(space)
    require_store(url)
    for reference in arena or ():
        require_registry(reference, space)
    server = servers.begin(space, "prefect")  # raters need not wait for it: what cannot be said is said again
    os.environ["PREFECT_API_URL"] = server.api
    from flows.pipeline import human_votes
    from preference_ui.app import serve

    where, contestants = human_votes.store_url(space, url), []
    if arena is not None:
        from alignment.records import Sampling
        from flows.services import arena_models as ring

        sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens)
        contestants = ring.contestants(arena, space, sampling)
    serve(where, host=host, port=port, public_url=public_url, snapshots=human_votes.snapshots(space),
          contestants=contestants)  # fmt: skip


def _require_place(host: str, port: int) -> None:
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

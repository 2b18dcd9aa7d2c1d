"""`rlhf rate`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from flows.failures import open_workspace
from flows.services import servers
from flows.services.named_servers import require_registry, require_store

if TYPE_CHECKING:
    pass


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

"""``rlhf serve``: a version behind an OpenAI-compatible endpoint, and the next champion without a pause."""

import asyncio
import contextlib
import importlib.util
import os
import signal
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.errors import Fault, InputError
from alignment.workspace import Workspace
from flows.commands.rate import require_place
from flows.console import PlainConsole
from flows.failures import open_workspace
from flows.services import servers
from flows.services.http_client import is_loopback
from flows.services.named_servers import require_named

if TYPE_CHECKING:
    import uvicorn

    from flows.serving.prompt_log import PromptLog

KEY_VARIABLE = "RLHF_SERVE_KEY"
DRAIN_SECONDS = 25  # for what is being answered, once this is told to end: Kubernetes kills after 30
NEEDED = "openai"  # what transformers' server writes its answers with
EXTRA = "pip install 'rlhf-flows[serve]'"


def serve_command(
    reference: str, workspace: Path, host: str, port: int, key: str | None, log_prompts: Path | None
) -> None:
    """Serves a version until SIGTERM or Ctrl-C. Raises InputError before anything is started."""
    secret, hidden = _key(key)
    if secret is None and not is_loopback(f"http://{_in_url(host)}"):
        problem = f"{host} is reached from other machines, and there is no key"
        remedy = f"give --key env:NAME or file:PATH, or set {KEY_VARIABLE}"
        raise InputError([Fault(problem, remedy, field="--host")])
    require_place(host, port)
    if importlib.util.find_spec(NEEDED) is None:
        raise InputError([Fault(f"transformers' server needs the package {NEEDED}, which is not installed", EXTRA)])
    space = open_workspace(workspace)
    servers.quiet_environment(space)
    require_served(reference, space)
    log = _prompt_log(log_prompts)
    asyncio.run(_serve(reference, space, host, port, secret, hidden, log))


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def require_served(reference: str, space: Workspace) -> None:
    """Raises InputError where there is no such registered version, or it is no longer what was registered."""
    require_named(space, "mlflow")
    from alignment.registry import find
    from flows.services.model_version import require_decoder

    if Path(reference).is_dir():
        problem = "a folder, and what is served is a registered version"
        raise InputError([Fault(problem, "name one, such as policy@champion: `rlhf models list`", file=reference)])
    require_decoder(find(space, reference).folder, space, "served", field=None)


def _prompt_log(path: Path | None) -> "PromptLog | None":
    from flows.serving.prompt_log import PromptLog

    return None if path is None else PromptLog(path)


def _key(source: str | None) -> tuple[str | None, tuple[str, ...]]:
    """The key, from where ``--key`` says that it is, and the variables that hold it. Raises InputError.

    The key itself is not taken: what stands in a command line is seen by everybody on the machine.
    """
    source = source or (f"env:{KEY_VARIABLE}" if os.environ.get(KEY_VARIABLE) else None)
    if source is None:
        return None, ()
    kind, _, place = source.partition(":")
    if kind == "env" and place:
        value = os.environ.get(place, "")
    elif kind == "file" and place:
        try:
            value = Path(place).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problem = f"the key cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}"
            raise InputError([Fault(problem, "give a file that holds it", file=place, field="--key")]) from None
    else:
        remedy = "write env:NAME or file:PATH: a command line is seen by everybody on the machine"
        raise InputError([Fault("this is not where a key is", remedy, field="--key")])
    value = value.strip()
    if not value or not value.isascii() or len(value.split()) != 1:
        problem = f"{place} holds no key" if not value else f"the key in {place} has spaces or signs beyond ASCII"
        raise InputError([Fault(problem, "put a long random word there", field="--key")])
    return value, ((place,) if kind == "env" else ())


async def _serve(
    reference: str, space: Workspace, host: str, port: int, key: str | None, hidden: tuple[str, ...],
    log: "PromptLog | None",
) -> None:  # fmt: skip
    import httpx
    import uvicorn

    from flows.serving.front import LOCAL_NAMES, AccessRule, Front
    from flows.serving.lookup import following
    from flows.serving.switchboard import Switchboard
    from flows.serving.version_server import VersionServer

    class _Answering(uvicorn.Server):
        """Leaves signals to this command, which ends the models' servers as well."""

        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None, None, None]:
            yield

    console = PlainConsole()
    stopping = asyncio.Event()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)  # a kept one may be closed under a request
    async with httpx.AsyncClient(trust_env=False, timeout=httpx.Timeout(None, connect=10.0), limits=limits) as client:
        start = partial(VersionServer, space, hidden=hidden)
        board = Switchboard(reference, following(space, reference), start, client, console.print)
        front = Front(board, client, AccessRule(key, (*LOCAL_NAMES, host)), log)
        config = uvicorn.Config(
            front.app(), host=host, port=port, log_config=None, access_log=False, lifespan="off",
            timeout_graceful_shutdown=DRAIN_SECONDS, server_header=False,
        )  # fmt: skip
        server = _Answering(config)
        _end_on_signals(stopping, server)
        switching = asyncio.create_task(board.run(stopping))
        console.print(f"{reference} at http://{_in_url(host)}:{port}/v1   (Ctrl-C ends it)")
        if log is not None:
            console.print(f"prompts that are answered go to {log.path}")
        answering = asyncio.create_task(server.serve())
        try:
            await asyncio.wait({switching, answering}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.set()
            server.should_exit = True
            await asyncio.gather(answering, return_exceptions=True)
            await asyncio.gather(switching, return_exceptions=True)
            await board.close()
        switching.result()
        answering.result()
    console.print("served to the end: everything has ended")


def _end_on_signals(stopping: asyncio.Event, server: "uvicorn.Server") -> None:
    """SIGTERM and Ctrl-C let what is being answered be answered; a second one does not."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        server.force_exit = stopping.is_set()
        stopping.set()
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)

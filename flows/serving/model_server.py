"""One version behind transformers' OpenAI-compatible server.

``python -m flows.serving.model_server WORKSPACE PORT`` makes a version ready (:mod:`flows.serving.served_folder`) and
then ``transformers serve`` takes over, on the loopback address, in this process. The version, as the registry lists it,
is the first line of standard input: a pipe that the parent holds open. Where the parent dies, however it does, the pipe
ends, and so does this.
"""

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path

from alignment.errors import InputError, StageError
from alignment.registry.records import RegisteredVersion
from alignment.workspace import Workspace
from flows.services.servers import quiet_environment

LOOPBACK = "127.0.0.1"


def main(root: Path, port: int) -> None:
    """Serves the version until SIGTERM. Ends with a line, and the code 1, where it cannot be served."""
    version = RegisteredVersion.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    workspace = Workspace(root)
    quiet_environment(workspace)
    os.environ["HF_HUB_OFFLINE"] = "1"  # all that it loads is here
    from flows.serving.served_folder import served_folder

    try:
        folder = served_folder(workspace, version)
    except (InputError, StageError) as error:
        raise SystemExit(f"rlhf: {error}") from None
    os.chdir(folder.parent)
    _serve(folder.name, port)


def _serve(model: str, port: int) -> None:
    """Runs transformers' server with everything that it needs said: called from Python, it fills in nothing.

    The model's name is a folder below the current one: a path would be cut at an ``@``, and stand in every answer.
    """
    from transformers.cli.serve import Serve

    from alignment.precision import natural_precision

    with contextlib.suppress(KeyboardInterrupt):  # uvicorn sends itself the signal that ended it once more
        Serve(force_model=model, host=LOOPBACK, port=port, dtype=natural_precision("auto"), log_level="error")


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(64):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

"""MLflow's server on a store that is whole first: ``python -m flows.services.mlflow_server STORE [OPTION]...``.

The server would migrate the store in place; a Ctrl-C in that moment would break it for good. This process makes the
tables (:mod:`alignment.registry.database`) and then becomes the server, under the same process id.
"""

import os
import sys
from collections.abc import Sequence

from alignment.errors import InputError
from alignment.registry.database import prepare


def main(arguments: Sequence[str]) -> None:
    """Prepares the store and becomes ``mlflow server``. Exits with 2 where the store cannot be used."""
    store, *options = arguments
    try:
        prepare(store)
    except InputError as error:
        raise SystemExit(f"rlhf: {error}") from None
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, *options]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main(sys.argv[1:])

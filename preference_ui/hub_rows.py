"""Rows of a data set on a hub, the one that ``HF_ENDPOINT`` names."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignment.errors import Fault, InputError, StageError

HUB_PREFIX = "hub:"
READ = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet", ".csv")  # endings of the files that hold comparisons
LISTED = 12  # files that a fault names


def require_repository(name: str, field: str) -> None:
    """Raises InputError where this is no name of a repository, with its owner."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        reason = str(error).splitlines()[0]
        raise InputError([Fault(reason, "write ORGANISATION/NAME", field=field)]) from None
    if "/" not in name:
        raise InputError([Fault(f"{name!r} says not whose it is", "write ORGANISATION/NAME", field=field)])


def download_rows(named: str, revision: str | None, folder: Path) -> Path:
    """A data set's file, put into a folder.

    ``named`` is ``ORGANISATION/NAME``, or ``ORGANISATION/NAME:path/of/a/file`` where it has several. Raises InputError
    where it has no such file, and StageError where the hub does not give it.
    """
    from huggingface_hub import HfApi, hf_hub_download

    repository, _, wanted = named.partition(":")
    require_repository(repository, "file")
    api = HfApi()
    with hub_errors(str(api.endpoint), repository):
        info = api.dataset_info(repository, revision=revision)
        files = sorted(name for one in info.siblings or [] if _is_read(name := one.rfilename))
        file = _chosen(repository, files, wanted)
        return Path(hf_hub_download(repository, file, repo_type="dataset", revision=info.sha, local_dir=folder,
                                    endpoint=api.endpoint))  # fmt: skip


def _is_read(name: str) -> bool:
    """Whether a file is one of rows, and its name, which is another's, leads into the folder that it is put into."""
    return name.endswith(READ) and not name.startswith("/") and ".." not in name.split("/")


def _chosen(repository: str, files: list[str], wanted: str) -> str:
    shown = ", ".join(files[:LISTED]) + (f" and {len(files) - LISTED} more" if len(files) > LISTED else "")
    if wanted:
        if wanted in files:
            return wanted
        raise InputError([Fault(f"{repository} has no file {wanted}", f"it has {shown or 'none that is read'}")])
    if not files:
        raise InputError([Fault(f"{repository} has no file that is read", f"these are: {', '.join(READ)}")])
    if len(files) > 1:
        example = f"{HUB_PREFIX}{repository}:{files[0]}"
        raise InputError([Fault(f"{repository} has several files: {shown}", f"name one: {example}")])
    return files[0]


@contextmanager
def hub_errors(endpoint: str, repository: str) -> Iterator[None]:
    """What a hub or the way to it says, as one line."""
    from httpx import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except LocalTokenNotFoundError:
        raise StageError("the hub knows nobody here: set HF_TOKEN, or `hf auth login`") from None
    except OfflineModeIsEnabled:
        raise StageError("the hub cannot be reached while HF_HUB_OFFLINE is set") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = ": set HF_TOKEN to one that may do this, or `hf auth login`" if status in (401, 403) else ""
        reason = (error.server_message or str(error)).splitlines()[0]
        raise StageError(f"{endpoint} refused {repository} ({status}, {reason}){remedy}") from None
    except (HTTPError, OSError) as error:
        raise StageError(f"{endpoint} cannot be reached: {error or type(error).__name__}") from None

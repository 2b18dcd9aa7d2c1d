"""A folder to a repository of a hub, the one that ``HF_ENDPOINT`` names."""

from pathlib import Path
from typing import Literal

from preference_ui.hub_rows import hub_errors


def upload_folder(
    folder: Path, repository: str, words: str, *, public: bool, kind: Literal["model", "dataset"] = "model"
) -> None:
    """One commit with the folder's files, in a repository that is made where it is not there. Raises StageError."""
    from huggingface_hub import HfApi

    api = HfApi()
    with hub_errors(str(api.endpoint), repository):
        api.create_repo(repository, private=not public, exist_ok=True, repo_type=kind)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=words, repo_type=kind)

"""What people said of two versions, for the leaderboard: votes in the raters' app, and the arena's."""

import logging
import os
from contextlib import closing

from alignment.errors import InputError
from alignment.evaluation.leaderboard import Game, vote_games
from alignment.registry.files import LINEAGE_FILE
from alignment.registry.records import VersionRecord
from alignment.workspace import Workspace

_log = logging.getLogger(__name__)


def human_games(workspace: Workspace) -> list[Game]:
    """People's games; none where there is no raters' store, or where it does not answer, which is logged."""
    if not os.environ.get("RLHF_STORE") and not (workspace.root / "raters" / "votes.db").exists():
        return []
    from flows.pipeline.human_votes import store_url  # the raters' store takes its time
    from preference_ui.arena.votes import read_talk_votes
    from preference_ui.import_export import read_votes
    from preference_ui.store.store import Store, StoreError

    try:
        with closing(Store.open(store_url(workspace))) as store:
            cast, talks = read_votes(store), read_talk_votes(store)
    except (StoreError, InputError) as error:
        _log.warning("the report's leaderboard is without people's votes: %s", error)
        return []
    refs = {name: ref for ref, names in registered_names(workspace).items() for name in names}
    games = list(vote_games(cast.comparisons, cast.votes))
    for talk in talks:
        if talk.verdict != "both_bad":
            outcome = {"a": 1.0, "b": 0.0, "tie": 0.5}[talk.verdict]
            left, right = refs.get(talk.a, talk.a), refs.get(talk.b, talk.b)
            if left != right:
                games.append(Game(id=f"arena/{talk.id}", left=left, right=right, outcome=outcome, who="people"))
    return games


def registered_names(workspace: Workspace) -> dict[str, list[str]]:
    """The registered versions (``policy/3``) by their candidate's reference.

    Read from their folders: to ask MLflow takes seconds that a run from the cache does not have.
    """
    names: dict[str, list[str]] = {}
    for path in sorted(workspace.root.glob(f"registry/*/v*/{LINEAGE_FILE}")):
        record = VersionRecord.model_validate_json(path.read_text("utf-8"))
        names.setdefault(str(record.candidate), []).append(f"{record.name}/{record.version}")
    return names

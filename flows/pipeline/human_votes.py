"""Preferences by people: a stage queues its comparisons in the raters' store, and its votes come back as a snapshot.

A run that must wait ends: it holds no process, no slot and no thread. All that it made is in the cache, so the run that
the event ``preferences.ready`` starts (:mod:`flows.deployment.serve`) comes to the same stage in seconds, finds the
snapshot under the queue's name, and goes on. The snapshot's file is part of the stage's cache key.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from alignment.data.jsonl import read_records
from alignment.digests import digest_of
from alignment.durable_files import write_text
from alignment.errors import Fault, InputError, StageError
from alignment.preferences.comparisons import make_comparisons, make_single_answers
from alignment.preferences.preference_files import read_known
from alignment.recipe.graph import of_type
from alignment.recipe.recipe import Recipe
from alignment.recipe.resolved import ResolvedRecipe
from alignment.recipe.stages.feedback.preferences import HumanPreferencesStage, Qualification
from alignment.records import Artifact, Comparison, Prompt, Response
from alignment.workspace import Workspace
from flows.command_lines import rlhf_line
from flows.pipeline.uncertainty_sampling import doubts
from flows.runs import keep_recipe
from preference_ui.import_export import Export
from preference_ui.labelling.queue import Gold, queue_comparisons, queue_gold
from preference_ui.labelling.vote_schema import storable
from preference_ui.quality.queue_stats import QueueStanding, queue_standings
from preference_ui.snapshots.collections import (
    CollectionTarget,
    find_collection,
    open_collection,
    records_of,
    take_if_ready,
)
from preference_ui.store.queue_settings import QueueSettings, change_queue
from preference_ui.store.settings import Criterion, RaterQuestion, SpanLabel
from preference_ui.store.store import Store, StoreError

TAKEN = ".taken.json"  # ends the name of a file that says what was counted when a snapshot was taken


def store_url(workspace: Workspace, url: str | None = None) -> str:
    """The raters' store: the URL given, else ``RLHF_STORE``, else the path of SQLite's file in the workspace."""
    return url or os.environ.get("RLHF_STORE") or str(workspace.folder("raters") / "votes.db")


@contextmanager
def naming_the_store(workspace: Workspace) -> Iterator[None]:
    """Has a store that is locked, full or away be a StageError that says which one, and what to do."""
    try:
        yield
    except StoreError as error:
        address = make_url(url).render_as_string() if "://" in (url := store_url(workspace)) else url  # no password
        problem = f"the raters' store {address} cannot be used now: {error}"
        raise StageError(f"{problem}; see what holds it up, and give the same command again") from error


def snapshots(workspace: Workspace) -> Path:
    """Where the snapshots of collections are written."""
    return workspace.folder("raters", "snapshots")


def waiting_recipe(workspace: Workspace, queue: str) -> Path:
    """The recipe, as it ran, of the run that waits for a queue."""
    return workspace.folder("raters", "waiting") / f"{queue}.yaml"


def heard(workspace: Workspace, queue: str) -> Path:
    """Where the digest of the snapshot is noted that a run went on from, to its end."""
    return waiting_recipe(workspace, queue).with_suffix(".heard")


def is_heard(workspace: Workspace, queue: str, digest: str) -> bool:
    """Whether a run went on from this snapshot: several queues may be ready at once, each with an event of its own."""
    mark = heard(workspace, queue)
    return mark.exists() and mark.read_text("utf-8").strip() == digest


def unheard(recipe: Recipe, workspace: Workspace) -> dict[str, str]:
    """The queues of a recipe that are ready and that no run went on from, with their snapshots' digests.

    An event is heard by those who listen when it is sent: votes may be ready before anybody serves the recipe.
    """
    waiting = workspace.folder("raters", "waiting").glob(f"{queue_prefix(recipe)}*.yaml")
    found = {}
    for path in sorted(waiting):
        queue = path.name.removesuffix(".yaml")
        snapshot = _snapshot(workspace, queue)
        if snapshot is not None and not is_heard(workspace, queue, snapshot.digest):
            found[queue] = snapshot.digest
    return found


def standings(workspace: Workspace) -> list[QueueStanding]:
    """How every queue of the raters' store stands."""
    store = Store.open(store_url(workspace))
    try:
        return queue_standings(store)
    finally:
        store.close()


def queue_prefix(recipe: Recipe) -> str:
    """What the names of all queues of a recipe begin with; no other recipe's do (a recipe's name has no dot)."""
    return f"{recipe.name[:24]}."


def queue_name(name: str, recipe: Recipe, responses: Artifact) -> str:
    """The queue of one stage on one set of responses. The condition is no part of it: to change it loses no vote."""
    settings = _settings(recipe, name)
    identity = [recipe.name, name, responses.digest, settings.comparisons_per_prompt, recipe.seed]
    identity += [] if settings.feedback == "pairs" else [settings.feedback]
    return f"{queue_prefix(recipe)}{name[:24]}.{digest_of(identity)[:12]}"


def queue_for_raters(
    name: str,
    recipe: Recipe,
    made: Mapping[str, Artifact],
    workspace: Workspace,
    data: Mapping[str, Path] | None = None,
) -> None:
    """Puts a stage's comparisons before the raters and starts to wait. Doing so again changes nothing.

    ``data`` are the files that the recipe names, by the names that it gives them.
    """
    settings = _settings(recipe, name)
    responses = made[settings.responses]
    queue = queue_name(name, recipe, responses)
    items = comparisons(settings, recipe, responses, queue)
    if len(items) < settings.pairs_wanted():
        of = "pairs" if settings.feedback == "pairs" else "answers"
        shown = "comparisons" if of == "pairs" else "answers to show"
        problem = f"{settings.pairs_wanted()} {of} are wanted, and the responses make {len(items)} {shown}"
        raise InputError([Fault(problem, "ask for fewer, or sample more responses", field=f"stages.{name}.{of}")])
    store = Store.open(store_url(workspace))
    try:
        weights = None  # what was queued before is not weighed again
        if find_collection(store, queue) is None:
            weights = doubts(name, recipe, items, workspace)
            _ask_of_single_answers(store, queue, settings, recipe.name)
            if settings.feedback != "scores":
                _ask_for_scores(store, settings.criteria, recipe.name)
            _ask_for_qualification(store, settings.qualification, data or {}, recipe.name)
            _ask_before_work(store, settings, recipe.name)
        queue_comparisons(store, items, votes_wanted=settings.votes_per_comparison, queue=queue,
                          informativeness=weights, actor=recipe.name)  # fmt: skip
        condition = CollectionTarget(
            votes_per_comparison=settings.votes_per_comparison,
            pairs=settings.pairs_wanted(),
            min_agreement=settings.min_agreement,
            feedback=settings.feedback,
        )
        open_collection(store, queue, condition, actor=recipe.name)
    finally:
        store.close()


def comparisons(settings: HumanPreferencesStage, recipe: Recipe, responses: Artifact, queue: str) -> list[Comparison]:
    """What people are asked. The ids are the queue's own, so that two queues never share a comparison.

    A model may say what no database keeps (a NUL) and no person could judge: such answers are not asked about.
    """
    folder = Path(responses.path)
    make = make_comparisons if settings.compares_responses() else make_single_answers
    made = make(
        read_records(folder / "prompts.jsonl", Prompt),
        [one for one in read_records(folder / "responses.jsonl", Response) if storable(one.text)],
        settings.comparisons_per_prompt,
        recipe.seed,
    )
    return [one.model_copy(update={"id": f"{queue.rpartition('.')[2]}-{one.id}"}) for one in made]


def collected(
    name: str, recipe: Recipe, made: Mapping[str, Artifact], workspace: Workspace, ready: Mapping[str, str]
) -> dict[str, Path] | None:
    """The stage's data, once there are votes enough: the snapshot and what was counted with it; else None.

    ``ready`` maps a queue to the digest that its event named. Raises StageError where the snapshot is another.
    """
    settings = _settings(recipe, name)
    if settings.responses not in made:
        return None
    queue = queue_name(name, recipe, made[settings.responses])
    snapshot = _snapshot(workspace, queue)
    if snapshot is None:
        return None
    if ready.get(queue, snapshot.digest) != snapshot.digest:
        raise StageError(f"the run was started for snapshot {ready[queue][:12]}, and {queue} is {snapshot.digest[:12]}")
    counted = snapshots(workspace) / f"{queue}{TAKEN}"
    write_text(counted, snapshot.model_dump_json(exclude={"path"}, indent=2) + "\n")
    return {"snapshot": records_of(snapshot), "collection": counted}


def used_snapshot(data: Mapping[str, Path]) -> tuple[str, str]:
    """The queue and the digest of a stage's data, as :func:`collected` gives it."""
    counted = data["collection"]
    return counted.name.removesuffix(TAKEN), str(json.loads(counted.read_text("utf-8"))["digest"])


def remember_waiting(name: str, resolved: ResolvedRecipe, made: Mapping[str, Artifact], workspace: Workspace) -> str:
    """Remembers which recipe waits, and says for what."""
    recipe = resolved.recipe
    settings = _settings(recipe, name)
    queue = queue_name(name, recipe, made[settings.responses])
    keep_recipe(waiting_recipe(workspace, queue), resolved, workspace)
    what = "pairs" if settings.feedback == "pairs" else "answers"
    return (
        f"{name} waits for raters: {settings.pairs_wanted()} {what} of {settings.votes_per_comparison} votes each, in "
        f"the queue {queue}. People vote in the app of `{rlhf_line('rate', workspace=workspace.root)}`; when they are "
        f"done, the same run goes on, by hand or under `rlhf deploy`"
    )


def _ask_of_single_answers(store: Store, queue: str, settings: HumanPreferencesStage, recipe: str) -> None:
    """Has the queue's raters asked what the stage wants to know of single answers."""
    if settings.feedback in ("pairs", "thumbs"):
        return
    scored = settings.criteria if settings.feedback == "scores" else {}
    asked = QueueSettings(
        single=settings.feedback,
        criteria=tuple(Criterion(name=name, rubric=rubric) for name, rubric in scored.items()) or None,
        labels=tuple(SpanLabel(name=name, rubric=meaning) for name, meaning in settings.labels.items()),
    )
    change_queue(store, queue, asked, author=recipe)


def _ask_for_scores(store: Store, criteria: Mapping[str, str], recipe: str) -> None:
    """Makes a recipe's criteria the desk's: one set for all that raters see, or gold would be told by its questions."""
    wanted = tuple(Criterion(name=name, rubric=rubric) for name, rubric in criteria.items())
    _version, now = store.settings()
    if wanted and now.criteria != wanted:
        store.change_settings(now.model_copy(update={"criteria": wanted}), author=recipe)


def _ask_for_qualification(store: Store, wanted: Qualification | None, data: Mapping[str, Path], recipe: str) -> None:
    """Makes a recipe's questions part of the desk's trial, and its mark the desk's."""
    if wanted is None:
        return
    known = read_known(data.get(wanted.questions, Path(wanted.questions)))
    queue_gold(store, [Gold(one.comparison, one.ranking or ()) for one in known], purpose="trial", actor=recipe)
    _version, now = store.settings()
    if now.pass_mark != wanted.pass_mark or not now.trial_required:
        changed = {"pass_mark": wanted.pass_mark, "trial_required": True}
        store.change_settings(now.model_copy(update=changed), author=recipe)


def _ask_before_work(store: Store, settings: HumanPreferencesStage, recipe: str) -> None:
    """Makes a recipe's consent text and questions about the rater the desk's."""
    _version, now = store.settings()
    asked: dict[str, Any] = {"consent": settings.consent} if settings.consent else {}
    if settings.questions:
        asked["questions"] = tuple(RaterQuestion(**one.model_dump()) for one in settings.questions)
    if any(getattr(now, name) != value for name, value in asked.items()):
        store.change_settings(now.model_copy(update=asked), author=recipe)


def _settings(recipe: Recipe, name: str) -> HumanPreferencesStage:
    return dict(of_type(recipe.stages, HumanPreferencesStage))[name]


def _snapshot(workspace: Workspace, queue: str) -> Export | None:
    """A queue's snapshot, once there is one; its file is this workspace's own where it has one of that name."""
    store = Store.open(store_url(workspace))
    try:
        snapshot = take_if_ready(store, queue, snapshots(workspace))
    finally:
        store.close()
    if snapshot is None:
        return None
    own = snapshots(workspace) / Path(snapshot.path).name  # the store has the path of the workspace that took it
    if own != Path(snapshot.path) and (own.exists() or _is_own(workspace)):
        snapshot = snapshot.model_copy(update={"path": str(own)})
    if not records_of(snapshot).exists():
        problem = f"the snapshot of {queue} is not on this machine"
        raise InputError([Fault(problem, "bring it here from where the raters' app runs", file=snapshot.path)])
    return snapshot


def _is_own(workspace: Workspace) -> bool:
    """Whether the raters' store is the workspace's own file."""
    return store_url(workspace) == f"sqlite:///{workspace.folder('raters')}/votes.db"

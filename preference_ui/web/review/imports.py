"""The review desk's import: a file is looked at whole, with every fault, and queued where it has none."""

import logging
import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from alignment.errors import Fault, InputError, StageError
from preference_ui.accounts.auth import Account
from preference_ui.hub_rows import HUB_PREFIX, download_rows, require_repository
from preference_ui.importing import CheckedFile, FileImport, Imported, ImportRequest
from preference_ui.labelling.vote_schema import storable
from preference_ui.store.errors import Refusal
from preference_ui.store.queue_settings import DEFAULT, require_queue_name
from preference_ui.store.store import Store, StoreError
from preference_ui.web.middleware import UNAVAILABLE
from preference_ui.web.review.access import AT_ONCE, administrators_only

PREVIEW = ["Row", "Question", "Answers"]
FAULTS = ["Row", "Field", "What is wrong", "What to do"]
LOOK_SECONDS = 1.0  # between two looks at an import under way
EXCERPT = 500  # characters of a text in the preview
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".gz")
_log = logging.getLogger(__name__)
Shown = tuple[str, list[list[str]], list[list[str]], Any, Any]  # what to say, preview, faults, the button, the clock


def imports_tab(tab: gr.Tab, store: Store, artifacts: Path | None) -> None:
    """The tab's components and what they do."""
    desk = ImportDesk(store, artifacts)
    gr.Markdown(
        "A file of comparisons: JSON lines, Parquet or CSV with `prompt` and `responses`, or `prompt`, `chosen` and "
        "`rejected`; HH-RLHF dialogues; Open-Assistant trees. Or the answers that a run has sampled, or such a file of "
        "a data set on a hub: `ORGANISATION/NAME`, or `ORGANISATION/NAME:FILE` where it has several."
    )
    file = uploads_only(gr.File(label="File", file_types=list(SUFFIXES), type="filepath", elem_id="import-file"))
    with gr.Row():
        artifact = gr.Dropdown([""], value="", label="or what a run has sampled", allow_custom_value=True,
                               elem_id="import-artifact")  # fmt: skip
        hub = gr.Textbox("", label="or a data set on a hub", max_lines=1, elem_id="import-hub")
    with gr.Row():
        queue = gr.Textbox(DEFAULT, label="Queue", max_lines=1, elem_id="import-queue")
        wanted = gr.Number(0, label="Votes wanted of each (0: the queue's, or 3)", precision=0, minimum=0,
                           elem_id="import-wanted")  # fmt: skip
        gold = gr.Checkbox(False, label="Gold: the better answer is known", elem_id="import-gold")
    with gr.Row():
        look = gr.Button("Check it")
        enqueue = gr.Button("Import it", variant="primary", interactive=False, elem_id="import-enqueue")
    said = gr.Textbox(label="Import", interactive=False, elem_id="import-said")
    preview = gr.Dataframe(headers=PREVIEW, datatype="str", interactive=False, wrap=True, label="First rows",
                           elem_id="import-preview")  # fmt: skip
    faults = gr.Dataframe(headers=FAULTS, datatype="str", interactive=False, wrap=True, label="Faults",
                          elem_id="import-faults")  # fmt: skip
    clock = gr.Timer(LOOK_SECONDS, active=False)
    shown = [said, preview, faults, enqueue, clock]
    tab.select(desk.artifacts, None, [artifact], **AT_ONCE)
    tab.select(desk.look, None, shown, **AT_ONCE)
    look.click(desk.check, [file, artifact, hub, queue, wanted, gold], shown, **AT_ONCE)
    enqueue.click(desk.enqueue, None, shown, **AT_ONCE)
    clock.tick(desk.look, None, shown, **AT_ONCE)


def uploads_only(file: gr.File) -> gr.File:
    """Has a file field take what was uploaded here, and nothing else.

    Below a page that is mounted Gradio takes whatever path or address a request names, and reads it. (A subclass would
    say so better, but for each one Gradio writes a stub file into the package.)
    """

    def kept(name: Any) -> str | None:
        return None if name is None else str(require_uploaded(name))

    async def kept_too(name: Any) -> str | None:
        return kept(name)

    file.move_resource_to_block_cache, file.async_move_resource_to_block_cache = kept, kept_too
    return file


def require_uploaded(name: Any) -> Path:
    """The path of an uploaded file: it lies in a folder of its own in Gradio's. Raises gr.Error for any other."""
    uploads, path = Path(get_upload_folder()).resolve(), Path(str(name)).resolve()
    if path.parent.parent != uploads or not path.is_file():
        raise gr.Error("This file was not uploaded here.")
    return path


class ImportJob(threading.Thread):
    """A file under way: checked, and after :meth:`go_on` queued. Only the thread itself writes what others read."""

    def __init__(self, store: Store, asked: ImportRequest, upload: Path | None, hub: str) -> None:
        super().__init__(name="import", daemon=True)
        self.one, self.upload, self.hub = FileImport(store, asked, self.progress), upload, hub
        self.said = "Checking …"
        self.checked: CheckedFile | None = None
        self.imported: Imported | None = None
        self.waits = False  # for an administrator to go on
        self._asked = threading.Event()
        self._given_up = False

    def run(self) -> None:
        try:
            with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                if self.hub:
                    self.said = "Fetching …"
                    self.one.asked = replace(self.one.asked, path=download_rows(self.hub, None, Path(folder)))
                self._check_and_enqueue()
        except (InputError, StageError) as error:
            self.said = str(error)
        except StoreError as error:
            _log.warning("the store failed: %s", error)
            self.said = UNAVAILABLE
        except Exception:  # a fault of ours: it goes into the log
            _log.exception("an import failed")
            self.said = "Something went wrong here. What is queued stays; import the file again for the rest."
        finally:
            self.waits = False
            self.one.close()
            if self.upload is not None and self.imported is not None:
                _forget(self.upload)

    def progress(self, what: str, rows: int) -> None:
        """Says how far it is."""
        total = f" of {self.checked.new:,}" if self.checked else ""
        self.said = f"{rows:,}{total} rows {what} …"

    def go_on(self) -> None:
        """Has what was checked be queued."""
        self.said, self.waits = "Importing …", False
        self._asked.set()

    def give_up(self) -> None:
        """Forgets what was checked, where nobody has gone on."""
        self._given_up = True
        self._asked.set()
        self.join(timeout=10)

    def _check_and_enqueue(self) -> None:
        self.checked = checked = self.one.check()
        left_out = "".join(f"; {count:,} left out: {why}" for why, count in sorted(checked.left_out.items()))
        if checked.faulty:
            kept = len(self.one.faults)
            more = f"; the first {kept:,} are below" if checked.faulty > kept else ""
            self.said = f"{checked.faulty:,} faults{more}. Nothing is stored until the file has none{left_out}."
            return
        self.said = (
            f"{checked.rows:,} rows: {checked.new:,} new, {checked.repeated:,} repeat an earlier row, "
            f"{checked.known:,} were queued before{left_out}. Nothing is stored yet."
        )
        self.waits = True
        self._asked.wait()
        if self._given_up:
            self.said = "Another file is looked at."
            return
        self.imported = found = self.one.enqueue()
        gold = f"; {found.turned:,} of those are gold now" if found.turned else ""
        gold += f"; {found.kept:,} stay as they are, because raters have had them" if found.kept else ""
        self.said = f"Imported: {found.new:,} new comparisons, {found.known:,} were queued before{gold}."


class ImportDesk:
    """What the tab does: one file at a time, for all administrators."""

    def __init__(self, store: Store, artifacts: Path | None) -> None:
        self.store, self.folder = store, artifacts
        self._job: ImportJob | None = None
        self._lock = threading.Lock()

    def artifacts(self, request: gr.Request) -> Any:
        """The artifacts that hold responses, newest first."""
        found, _said = administrators_only(request, lambda _account: (self._artifacts(), ""), ([],))
        return gr.update(choices=["", *found])

    def check(
        self, file: str | None, artifact: str | None, hub: str | None, queue: str, wanted: float | None, gold: bool,
        request: gr.Request,
    ) -> Shown:  # fmt: skip
        """Begins to look at a file, at what a run has sampled, or at a data set."""

        def act(account: Account) -> Shown:
            require_queue_name(str(queue or "").strip())
            data_set = str(hub or "").strip().removeprefix(HUB_PREFIX)
            if sum(map(bool, (file, artifact, data_set))) != 1:
                raise Refusal("import", "Choose one: a file, what a run has sampled, or a data set.")
            if data_set:
                require_repository(data_set.partition(":")[0], "data set")
            path = require_uploaded(file) if file else self._artifact(str(artifact)) if artifact else Path(data_set)
            asked = ImportRequest(
                path, str(queue).strip(), int(wanted or 0) or None, bool(gold), account.name,
                shown_as=path.name if file else artifact or data_set,
            )  # fmt: skip
            self._begin(asked, path if file else None, data_set)
            return self._shown()

        return self._answer(request, act)

    def enqueue(self, request: gr.Request) -> Shown:
        """Has the file that was looked at be queued."""

        def act(_account: Account) -> Shown:
            with self._lock:
                if self._job is None or not self._job.waits:
                    raise Refusal("import", "There is no checked file. Check one first.")
                self._job.go_on()
            return self._shown()

        return self._answer(request, act)

    def look(self, request: gr.Request) -> Shown:
        """How far it is."""
        return self._answer(request, lambda _account: self._shown())

    def _begin(self, asked: ImportRequest, upload: Path | None, hub: str) -> None:
        with self._lock:
            if self._job is not None and self._job.is_alive():
                if not self._job.waits:
                    raise Refusal("import", "Another file is under way. Please wait until it is done.")
                self._job.give_up()
            earlier = None if self._job is None else self._job.upload
            self._job = ImportJob(self.store, asked, upload, hub)
            if earlier is not None and earlier != upload:
                _forget(earlier)
            self._job.start()

    def _shown(self) -> Shown:
        job = self._job
        if job is None:
            return "", [], [], gr.update(interactive=False), gr.update(active=False)
        checked = job.checked
        preview = [] if checked is None else [_preview(one) for one in checked.preview]
        faults = [] if checked is None else [_fault(one) for one in job.one.faults]
        busy = job.is_alive() and not job.waits
        return job.said, preview, faults, gr.update(interactive=job.waits), gr.update(active=busy)

    def _answer(self, request: gr.Request, act: Any) -> Shown:
        def said_last(account: Account) -> tuple[Any, ...]:
            said, *rest = act(account)
            return (*rest, said)

        otherwise = (gr.skip(), gr.skip(), gr.skip(), gr.skip())
        preview, faults, button, clock, said = administrators_only(request, said_last, otherwise)
        return said, preview, faults, button, clock

    def _artifacts(self) -> list[str]:
        if self.folder is None:
            return []
        found = sorted(self.folder.glob("*/v*/responses.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
        return [path.parent.relative_to(self.folder).as_posix() for path in found]

    def _artifact(self, name: str) -> Path:
        """An artifact's folder: one of those that are listed, and no other."""
        if not storable(name) or name not in self._artifacts() or self.folder is None:
            raise Refusal("import", "There is no such artifact.")
        return self.folder / name


def _forget(upload: Path) -> None:
    """Removes an uploaded file, which lies in a folder of its own."""
    shutil.rmtree(upload.parent, ignore_errors=True)


def _preview(one: Any) -> list[str]:
    answers: Sequence[str] = one.answers
    letters = "\n\n".join(f"{chr(65 + at)}: {text[:EXCERPT]}" for at, text in enumerate(answers))
    return [str(one.row), one.question[:EXCERPT], letters]


def _fault(one: Fault) -> list[str]:
    return ["" if one.row is None else str(one.row), one.field or "", one.problem, one.remedy]

"""The scope ``queue``: comparisons go in, away, and back."""

import json
import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends
from sqlalchemy import select

from alignment.errors import InputError
from preference_ui.accounts.tokens import Bearer
from preference_ui.importing import FileImport, ImportRequest
from preference_ui.labelling.queue import put_back, withdraw
from preference_ui.store.schema import comparisons
from preference_ui.store.store import Store
from preference_ui.web.api.bearer import allowed
from preference_ui.web.api.models import Changed, Named, NewRows, RowsTaken

Queuer = Annotated[Bearer, Depends(allowed("queue"))]


def queue_routes(store: Store) -> APIRouter:
    """What a token with the scope ``queue`` can do."""
    router = APIRouter(tags=["queue"])

    @router.post("/comparisons")
    def add(sent: NewRows, bearer: Queuer) -> RowsTaken:
        """Queues comparisons, or single answers for a thumb. The rows are checked as `rlhf votes import` checks a
        file's; where one is wrong, all faults are told and nothing is queued. Sent again, it changes nothing."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in sent.rows), "utf-8")
            asked = ImportRequest(path, sent.queue, sent.votes_wanted, sent.gold, bearer.actor)
            with FileImport(store, asked) as rows:
                rows.check()
                if rows.faults:
                    raise InputError(rows.faults)
                taken = rows.enqueue()
        return RowsTaken.model_validate(taken.model_dump())

    @router.post("/comparisons/withdraw")
    def take_away(sent: Named, bearer: Queuer) -> Changed:
        """Takes comparisons out of their queues. Votes that were given stay."""
        unknown = _unknown(store, sent.ids)
        return Changed(changed=withdraw(store, sent.ids, actor=bearer.actor), unknown=unknown)

    @router.post("/comparisons/put_back")
    def bring_back(sent: Named, bearer: Queuer) -> Changed:
        """Puts withdrawn comparisons back, and hands out what was held: somebody has looked at them."""
        unknown = _unknown(store, sent.ids)
        return Changed(changed=put_back(store, sent.ids, actor=bearer.actor), unknown=unknown)

    return router


def _unknown(store: Store, identifiers: list[str]) -> list[str]:
    with store.read() as connection:
        found = connection.execute(select(comparisons.c.id).where(comparisons.c.id.in_(identifiers))).scalars()
        known = set(found)
    return [one for one in dict.fromkeys(identifiers) if one not in known]

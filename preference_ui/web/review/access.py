"""Who may do something at the review desk, and how it is answered."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from alignment.errors import InputError
from preference_ui.accounts.auth import Account
from preference_ui.store.errors import Refusal
from preference_ui.store.store import StoreError
from preference_ui.web.middleware import UNAVAILABLE, account_in

AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden"}  # answered in the reply, without Gradio's queue
_log = logging.getLogger(__name__)


def administrators_only(
    request: gr.Request, act: Callable[[Account], tuple[Any, ...]], otherwise: Sequence[Any]
) -> tuple[Any, ...]:
    """What a handler answers; where it may not or cannot, ``otherwise`` and a sentence."""
    account = account_in(request.request.scope)
    if account is None or not account.is_administrator:
        return (*otherwise, "This is for administrators.")
    try:
        return act(account)
    except Refusal as refusal:
        return (*otherwise, refusal.sentence)
    except InputError as error:
        return (*otherwise, str(error))
    except StoreError as error:
        _log.warning("the store failed: %s", error)
        return (*otherwise, UNAVAILABLE)

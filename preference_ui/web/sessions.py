"""What Gradio remembers of a browser: nothing, on pages that keep everything in the store.

Gradio makes a state for each ``session_hash`` that a request names, of some hundred kilobytes, and a browser may name a
new one each time. The pages have no state of Gradio's, so one serves everybody.
"""

import secrets

import gradio as gr
from fastapi import FastAPI
from gradio.state_holder import SessionState, StateHolder
from starlette.routing import Mount


class OneState(StateHolder):  # type: ignore[misc]  # gradio does not say its types
    """The same state whatever a browser calls its session, under a name that none can know, so that none can end it."""

    def __init__(self) -> None:
        super().__init__()
        self._name = secrets.token_urlsafe()

    def __getitem__(self, session_id: str) -> SessionState:
        return super().__getitem__(self._name)


def share_state(app: FastAPI, path: str, page: gr.Blocks) -> None:
    """Has the page that is mounted at ``path`` keep one state for all. Raises LookupError where there is none."""
    for route in app.routes:
        if isinstance(route, Mount) and route.path == path:
            holder = OneState()
            holder.set_blocks(page)
            route.app.state_holder = holder  # type: ignore[attr-defined]
            return
    raise LookupError(path)

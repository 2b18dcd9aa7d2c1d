"""Events on the Prefect server: what starts a run elsewhere."""

from collections.abc import Mapping
from typing import Any


def send_event(name: str, resource: str, labels: Mapping[str, str], payload: Mapping[str, Any]) -> None:
    """Sends an event and waits until the server has it. Raises httpx.HTTPError where it did not take it.

    Prefect's own ``emit_event`` leaves the sending to a thread and drops what cannot be sent; nobody would start the
    run that waits for it.
    """
    from prefect.client.orchestration import get_client

    body = event_body(name, resource, labels, payload)
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[body]).raise_for_status()


def event_body(name: str, resource: str, labels: Mapping[str, str], payload: Mapping[str, Any]) -> dict[str, Any]:
    """An event as Prefect's interface takes it."""
    from prefect.events.schemas.events import Event, Resource

    about = Resource({"prefect.resource.id": resource, **labels})
    return Event(event=name, resource=about, payload=dict(payload)).model_dump(mode="json")


def show_raters(text: str) -> None:
    """Puts the raters' queues (Markdown) on the dashboard, as the newest version of the artifact ``raters``.

    Raises httpx.HTTPError where the server did not take it.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import ArtifactCreate

    artifact = ArtifactCreate(key="raters", type="markdown", description="The raters' queues", data=text)
    with get_client(sync_client=True) as client:
        client.create_artifact(artifact)

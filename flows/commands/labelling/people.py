"""``rlhf raters report``, ``consents``, ``link`` and ``links``: the raters' hours, their consent, and who may come."""

from pathlib import Path

from flows.commands.rate import print_rows, raters_store


def raters_report_command(
    workspace: Path, url: str | None, file: Path, hourly_rate: float | None, idle_minutes: float | None
) -> None:
    """Writes the raters' hours and pay."""
    from preference_ui.quality.people_report import write_times

    with raters_store(workspace, url) as store:
        rows = write_times(store, file, hourly_rate=hourly_rate, idle_minutes=idle_minutes)
    print(f"{file}: {rows} rows")


def raters_consents_command(workspace: Path, url: str | None, file: Path) -> None:
    """Writes what raters were asked before work, and said."""
    from preference_ui.quality.people_report import write_consents

    with raters_store(workspace, url) as store:
        rows = write_consents(store, file)
    print(f"{file}: {rows} rows")


def raters_link_command(
    workspace: Path,
    url: str | None,
    places: int,
    parameter: str,
    completion_url: str | None,
    note: str,
    days: float,
    public_url: str | None,
) -> None:
    """Prints a link by which many may join, or its path where it is not said how the app is reached."""
    from preference_ui.accounts.links import make_link
    from preference_ui.web.public_address import PublicAddress

    address = PublicAddress.of(public_url)
    with raters_store(workspace, url) as store:
        token = make_link(store, places=places, created_by="shell", parameter=parameter, completion=completion_url,
                          note=note, days=days)  # fmt: skip
    print(f"{address.url or ''}/join/{token}?{parameter}=")


def raters_links_command(workspace: Path, url: str | None, close: str | None, *, as_json: bool) -> None:
    """Prints the links that still work, or ends one of them."""
    from preference_ui.accounts.links import close_link, open_links

    with raters_store(workspace, url) as store:
        if close is not None:
            close_link(store, close, actor="shell")
        found = open_links(store)
    print_rows(found, as_json=as_json)

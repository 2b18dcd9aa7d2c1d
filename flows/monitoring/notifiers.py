"""Who hears how a run ended: a webhook, Slack, e-mail, whatever Apprise speaks to, or a block that Prefect keeps.

A notice that cannot be delivered never fails a run: it is tried three times and then stands in the log, without the
address, which is a secret of its own. Addresses and passwords are values of environment variables that the recipe
names; they stand in no recipe, artifact or log. No client is used that logs its requests, or follows a redirect.

Apprise sends to a hundred services and more, and could send to these three; they are not sent by it, because it signs
no webhook, sends Slack's messages to Slack's own servers alone (and not to what understands the same, such as
Mattermost), logs the addresses that mail goes to, and says of a failure only that there was one.
"""

import hashlib
import hmac
import http.client
import inspect
import json
import logging
import os
import smtplib
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Any
from urllib.parse import urlsplit

from alignment.plain_text import markdown_lines, one_line, printable
from alignment.recipe.deployment import Email, Ending, Notify, Webhook

_log = logging.getLogger(__name__)
PAUSES = (1.0, 5.0)  # seconds between the tries
TIMEOUT = 10.0
SIGNATURE = "X-Rlhf-Signature"  # sha256=<HMAC of the body>, as GitHub's webhooks have it


@dataclass(frozen=True, slots=True)
class News:
    """How a run ended, as receivers get it."""

    ending: Ending
    recipe: str
    run: str
    message: str
    report: str = ""  # where the page is
    dashboard: str = ""
    at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def subject(self) -> str:
        return one_line(f"{self.run or self.recipe}: {self.ending}")

    @property
    def text(self) -> str:
        links = [f"{name}: {link}" for name, link in (("report", self.report), ("dashboard", self.dashboard)) if link]
        return "\n".join([self.message, "", *links]).strip()


def notify(settings: Notify | None, news: News) -> dict[str, bool]:
    """Tells everyone who wants to hear of such an ending. Returns whether each way worked."""
    if settings is None or news.ending not in settings.on:
        return {}
    ways: dict[str, Callable[[], None]] = {}
    if (webhook := settings.webhook) is not None:
        ways["webhook"] = lambda: _webhook(webhook, news)
    if (slack := settings.slack) is not None:
        ways["slack"] = lambda: _post(_secret(slack), json.dumps(_slack(news)).encode())
    if (email := settings.email) is not None:
        ways["email"] = lambda: _email(email, news)
    if (services := settings.apprise) is not None:
        ways["apprise"] = lambda: _apprise(services, news)
    if (block := settings.block) is not None:
        ways["block"] = lambda: _block(block, news)
    return {name: _tried(name, way) for name, way in ways.items()}


def _tried(name: str, way: Callable[[], None]) -> bool:
    for pause in (*PAUSES, None):
        try:
            way()
            return True
        except Exception as error:  # whatever the receiver's trouble is, the run has ended as it has
            reason = str(error) if isinstance(error, _Answered) else type(error).__name__  # others may say the address
            if pause is None:
                _log.warning("a notice by %s was not delivered: %s", name, reason)
                return False
            time.sleep(pause)
    return False


class _Answered(Exception):  # noqa: N818 - it is the server's answer
    """A server answered with another status than success."""


def _secret(variable: str) -> str:
    value = os.environ.get(variable)
    if not value:
        raise _Answered(f"the environment variable {variable} is not set")
    return value


def _webhook(settings: Webhook, news: News) -> None:
    body = json.dumps(asdict(news)).encode()
    headers = {}
    if settings.secret_env is not None:
        key = _secret(settings.secret_env).encode()
        headers[SIGNATURE] = f"sha256={hmac.new(key, body, hashlib.sha256).hexdigest()}"
    _post(_secret(settings.url_env), body, headers)


def _post(url: str, body: bytes, headers: dict[str, str] | None = None) -> None:
    """POSTs JSON. A redirect is an answer like any other: what is said here is for the one address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _Answered("its address is not http or https")
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=TIMEOUT, context=context)
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT)
    try:
        where = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", where, body, {"Content-Type": "application/json", **(headers or {})})
        status = connection.getresponse().status
    finally:
        connection.close()
    if not 200 <= status < 300:
        raise _Answered(f"the server answered {status}")


def _slack(news: News) -> dict[str, Any]:
    """A message without mrkdwn. What Slack reads all the same begins with < or &, and is escaped as it asks for
    (https://docs.slack.dev/messaging/formatting-message-text)."""
    text = printable(f"{news.subject}\n{news.text}")
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, entity)
    return {"text": text, "mrkdwn": False}


def _email(settings: Email, news: News) -> None:
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = news.subject, settings.sender, ", ".join(settings.to)
    message.set_content(news.text)
    user = _secret(settings.user_env) if settings.user_env else ""
    password = _secret(settings.password_env) if settings.password_env else ""
    server: smtplib.SMTP
    if settings.security == "tls":
        context = ssl.create_default_context()
        server = smtplib.SMTP_SSL(settings.server, settings.port, timeout=TIMEOUT, context=context)
    else:
        server = smtplib.SMTP(settings.server, settings.port, timeout=TIMEOUT)
    with server:
        if settings.security == "starttls":
            server.starttls(context=ssl.create_default_context())
        if user:
            server.login(user, password)
        server.send_message(message)


def _apprise(variable: str, news: News) -> None:
    """Sends to the services whose Apprise addresses stand in a variable, with blanks or commas between them."""
    import apprise

    asset = apprise.AppriseAsset(
        app_id="rlhf-flows",
        app_desc="rlhf-flows",
        http_redirects=False,
        storage_mode=apprise.PersistentStoreMode.MEMORY,
    )
    services = apprise.Apprise(asset=asset)
    with _quiet("apprise", "urllib3", "requests"):
        if not services.add(_secret(variable)):
            raise _Answered("not all of its addresses are Apprise's: see https://appriseit.com/services")
        # Apprise sends a text as it is to what speaks Markdown, which would read it out of it.
        speaking: list[Any] = [one for one in services if one.notify_format == apprise.NotifyFormat.MARKDOWN]
        others: list[Any] = [one for one in services if one.notify_format != apprise.NotifyFormat.MARKDOWN]
        text = printable(news.text)
        told = [
            apprise.Apprise(some, asset=asset).notify(body=body, title=news.subject, body_format=form)
            for some, body, form in (
                (speaking, markdown_lines(text), apprise.NotifyFormat.MARKDOWN),
                (others, text, apprise.NotifyFormat.TEXT),
            )
            if some
        ]
        if not all(told):
            raise _Answered("not every service took it")


def _block(name: str, news: News) -> None:
    from prefect.blocks.abstract import NotificationBlock
    from prefect.blocks.core import Block
    from prefect.utilities.asyncutils import run_coro_as_sync

    block = Block.load(name)
    if not isinstance(block, NotificationBlock):
        raise _Answered("it is no notification block")
    with _quiet("httpx", "httpcore", "apprise"):
        told: Any = block.notify(news.text, subject=news.subject)
        if inspect.iscoroutine(told):  # where a loop runs in this thread
            run_coro_as_sync(told)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Clients that log the address of each request say nothing of it: it may be a secret."""
    loggers = [logging.getLogger(name) for name in names]
    before = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)

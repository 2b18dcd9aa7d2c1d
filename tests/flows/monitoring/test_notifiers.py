"""Notices, received by real servers on real sockets; and no secret of theirs anywhere that is written."""

import hashlib
import hmac
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

from alignment.errors import InputError
from alignment.recipe.deployment import Notify
from alignment.recipe.load import load_recipe
from alignment.recipe.recipe import Recipe
from flows.monitoring import notifiers
from flows.monitoring.notifiers import News, notify

NEWS = News(
    "refused", "tiny", "tiny-3", "policy v3 was refused", report="file:///r.html", dashboard="http://d", at="now"
)


@dataclass
class Receiver:
    """An HTTP server that keeps what it is sent; ``answers`` are the statuses of its next answers, then 200."""

    url: str = ""
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    kept = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kept.got.append((self.path, dict(self.headers), body))
            self.send_response(kept.answers.pop(0) if kept.answers else 200)
            self.send_header("Location", f"{kept.url}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield kept
    server.shutdown()


@dataclass
class Mailbox:
    """An SMTP server that takes mail from one user alone."""

    port: int = 0
    mails: list[tuple[str, list[str], Message]] = field(default_factory=list)
    signed_in: list[bytes] = field(default_factory=list)


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    box = Mailbox()

    class Handler:
        async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802
            box.mails.append((envelope.mail_from, envelope.rcpt_tos, message_from_bytes(envelope.content)))
            return "250 taken"

    def authenticator(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        box.signed_in.append(data.login)
        return AuthResult(success=(data.login, data.password) == (b"robot", b"s3cret-pass"), handled=False)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        box.port = free.getsockname()[1]
    controller = Controller(Handler(), hostname="127.0.0.1", port=box.port, authenticator=authenticator,
                            auth_required=True, auth_require_tls=False)  # fmt: skip
    controller.start()
    yield box
    controller.stop()


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifiers, "PAUSES", (0.0, 0.0))


def test_a_webhook_is_signed(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_URL", f"{receiver.url}/hooks/abc?x=1")
    monkeypatch.setenv("HOOK_KEY", "a key")
    settings = Notify.model_validate({"webhook": {"url_env": "HOOK_URL", "secret_env": "HOOK_KEY"}})
    assert notify(settings, NEWS) == {"webhook": True}
    [(path, headers, body)] = receiver.got
    assert path == "/hooks/abc?x=1"
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Rlhf-Signature"] == "sha256=" + hmac.new(b"a key", body, hashlib.sha256).hexdigest()
    assert json.loads(body) == {
        "ending": "refused", "recipe": "tiny", "run": "tiny-3", "message": "policy v3 was refused",
        "report": "file:///r.html", "dashboard": "http://d", "at": "now",
    }  # fmt: skip


def test_slack_gets_its_text(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLACK_URL", f"{receiver.url}/services/T0/B0/x")
    assert notify(Notify.model_validate({"slack": "SLACK_URL"}), NEWS) == {"slack": True}
    [(path, _headers, body)] = receiver.got
    assert path == "/services/T0/B0/x"
    message = json.loads(body)
    text = message["text"]
    assert message["mrkdwn"] is False
    assert text.startswith("tiny-3: refused\npolicy v3 was refused")
    assert "report: file:///r.html" in text


def _email(port: int, **changes: Any) -> Notify:
    email = {
        "server": "127.0.0.1", "port": port, "security": "none", "sender": "rlhf@example.org",
        "to": ["ann@example.org", "bob@example.org"], "user_env": "MAIL_USER", "password_env": "MAIL_PASSWORD",
    }  # fmt: skip
    return Notify.model_validate({"email": email | changes})


def test_a_mail_arrives(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAIL_USER", "robot")
    monkeypatch.setenv("MAIL_PASSWORD", "s3cret-pass")
    assert notify(_email(mailbox.port), NEWS) == {"email": True}
    [(sender, receivers, mail)] = mailbox.mails
    assert (sender, receivers) == ("rlhf@example.org", ["ann@example.org", "bob@example.org"])
    assert mail["Subject"] == "tiny-3: refused"
    assert "policy v3 was refused" in str(mail.get_payload())
    assert mailbox.signed_in == [b"robot"]


def test_a_password_goes_over_no_line_that_should_be_encrypted_and_is_not(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAIL_USER", "robot")
    monkeypatch.setenv("MAIL_PASSWORD", "s3cret-pass")
    assert notify(_email(mailbox.port, security="starttls"), NEWS) == {"email": False}
    assert mailbox.signed_in == []


def test_only_what_is_asked_for_is_told(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLACK_URL", receiver.url)
    assert notify(Notify.model_validate({"slack": "SLACK_URL", "on": ["promoted"]}), NEWS) == {}
    assert notify(None, NEWS) == {}
    assert receiver.got == []


def test_what_is_not_delivered_is_tried_again_and_no_secret_is_logged(
    receiver: Receiver, mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HOOK_URL", f"{receiver.url}/hooks/t0ken-in-the-path")
    monkeypatch.setenv("SLACK_URL", "http://127.0.0.1:9/services/t0ken-in-the-path")  # nobody listens there
    monkeypatch.setenv("MAIL_USER", "robot")
    monkeypatch.setenv("MAIL_PASSWORD", "another-pass")
    receiver.answers = [500, 302, 200]
    settings = Notify.model_validate({
        "webhook": {"url_env": "HOOK_URL"}, "slack": "SLACK_URL", "email": _email(mailbox.port).email,
    })  # fmt: skip
    assert notify(settings, NEWS) == {"webhook": True, "slack": False, "email": False}
    assert [path for path, _headers, _body in receiver.got] == ["/hooks/t0ken-in-the-path"] * 3  # no redirect followed
    assert "a notice by slack was not delivered: ConnectionRefusedError" in caplog.text
    assert "a notice by email was not delivered: SMTPAuthenticationError" in caplog.text
    assert "t0ken-in-the-path" not in caplog.text
    assert "another-pass" not in caplog.text


def test_apprise_reaches_every_service_in_the_variable(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    host = receiver.url.removeprefix("http://")
    monkeypatch.setenv("SERVICES", f"json://{host}/one json://{host}/two")
    assert notify(Notify.model_validate({"apprise": "SERVICES"}), NEWS) == {"apprise": True}
    assert sorted(path for path, _headers, _body in receiver.got) == ["/one", "/two"]
    for _path, _headers, body in receiver.got:
        said = json.loads(body)
        assert said["title"] == "tiny-3: refused"
        assert said["message"].startswith("policy v3 was refused")


def test_apprise_logs_no_address_and_follows_no_redirect(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver.answers = [302, 500, 404]
    monkeypatch.setenv("SERVICES", f"json://{receiver.url.removeprefix('http://')}/t0ken-in-the-path")
    settings = Notify.model_validate({"apprise": "SERVICES"})
    assert notify(settings, NEWS) == {"apprise": False}
    assert [path for path, _headers, _body in receiver.got] == ["/t0ken-in-the-path"] * 3
    assert "a notice by apprise was not delivered: not every service took it" in caplog.text
    monkeypatch.setenv("SERVICES", "nosuchservice://t0ken-in-the-path")
    assert notify(settings, NEWS) == {"apprise": False}
    assert "a notice by apprise was not delivered: not all of its addresses are Apprise's" in caplog.text
    assert "t0ken" not in caplog.text


def test_a_block_of_prefect(receiver: Receiver, prefect_server: str) -> None:
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    block = CustomWebhookNotificationBlock(
        name="ours", url=receiver.url, method="POST", allow_private_urls=True,
        json_data={"what": "{{subject}}", "more": "{{body}}"},
    )  # fmt: skip
    block.save("team", overwrite=True)
    assert notify(Notify.model_validate({"block": "custom-webhook/team"}), NEWS) == {"block": True}
    [(_path, _headers, body)] = receiver.got
    assert json.loads(body)["what"] == "tiny-3: refused"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"notify": {"slack": "SLACK_URL", "on": ["refusd"]}}, "'refusd' is not one of promoted, refused, completed"),
        ({"notify": {"slak": "SLACK_URL"}}, "unknown key; did you mean slack?"),
        ({"notify": {"slack": "https://hooks.example.org/t0ken"}}, "not the name of an environment variable"),
        ({"notify": {"apprise": "discord://t0ken/x"}}, "not the name of an environment variable"),
        ({"notify": {"webhook": {"url_env": "https://x.org/t0ken"}}}, "not the name of an environment variable"),
        ({"deployment": {"cron": "0 3 * * *", "every": 60}}, "give cron or every, not both"),
        ({"deployment": {"timezone": "Mars/Olympus"}}, "no time zone 'Mars/Olympus'"),
        ({"notify": {"email": {"server": "x", "sender": "a@b.c", "to": ["a@b.c"], "user_env": "MAIL_USER"}}},
         "user_env and password_env go together"),
    ],
)  # fmt: skip
def test_faults_of_a_file(make_recipe: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    path = make_recipe(tmp_path, stages=("sft",), changes=changes)
    with pytest.raises(InputError) as raised:
        load_recipe(path)
    assert line in str(raised.value)
    assert "t0ken" not in str(raised.value)  # what was written where a name should stand may be a secret


def test_faults_of_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.pipeline.environment import running_faults

    monkeypatch.delenv("NOT_SET", raising=False)
    recipe = Recipe.model_validate({
        "name": "tiny", "model": {"base": "x"}, "stages": {"sft": {"kind": "sft"}},
        "deployment": {"cron": "at noon", "after_refusal": ["tiny"]}, "notify": {"slack": "NOT_SET"},
    })  # fmt: skip
    assert [fault.field for fault in running_faults(recipe)] == [
        "deployment.cron", "deployment.after_refusal", "notify.slack",
    ]  # fmt: skip

"""One HTTP client for what runs beside a run: the servers' health, their JSON interfaces, what `rlhf up` asks.

A loopback address is never asked through a proxy: a proxy elsewhere would look for the server on its own machine.
Standard library alone, so that a process that only watches starts at once.
"""

import base64
import json
import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from ipaddress import ip_address
from typing import Any
from urllib.parse import unquote, urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


class UnreachableError(OSError):
    """No answer came; the message says why, and through which proxy it was asked."""


@dataclass(frozen=True, slots=True)
class HttpReply:
    """What a server answered: its status and its body."""

    status: int
    body: bytes

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    def json(self) -> Any:
        """The body as JSON. Raises ValueError where it is none."""
        return json.loads(self.body)


def is_loopback(url: str) -> bool:
    """Whether an address is on this machine's loopback interface."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def ask(
    url: str, *, method: str = "GET", body: Any = None, headers: Mapping[str, str] | None = None, timeout: float = 2.0
) -> HttpReply:
    """What the server answers, with whatever status. Raises UnreachableError after ``timeout`` seconds without."""
    data = None if body is None else json.dumps(body).encode()
    named = {"Content-Type": "application/json"} if data is not None else {}
    url, user = without_password(url), _user_of(url)
    if user:
        named["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    try:
        request = urllib.request.Request(url, data, {**named, **(headers or {})}, method=method)
        with _opener(url).open(request, timeout=timeout) as answer:
            return HttpReply(answer.status, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return HttpReply(error.code, error.read())
    except (OSError, HTTPException, ValueError) as error:
        raise UnreachableError(_reason(error, timeout) + _through(url)) from None


def answers(url: str, timeout: float = 2.0) -> bool:
    """Whether a server answers with success."""
    try:
        return ask(url, timeout=timeout).ok
    except UnreachableError:
        return False


def prefect_headers() -> dict[str, str]:
    """What Prefect's own client sends to be let in: an API key, or the user and password of a server of one's own."""
    if key := os.environ.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    if user := os.environ.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}
    return {}


def spare_loopback() -> None:
    """From now on no library of this process or of its children asks a loopback address through a proxy."""
    for name in ("no_proxy", "NO_PROXY"):
        there = [part.strip() for part in os.environ.get(name, "").split(",") if part.strip()]
        if "*" not in there:
            os.environ[name] = ",".join(dict.fromkeys([*there, *LOOPBACK]))


def without_password(url: str) -> str:
    """The address without the user and password that may stand in it: to be shown, and for urllib, which takes none."""
    return re.sub(r"(?<=//)[^/?#]*@", "", url, count=1)


def _user_of(url: str) -> str:
    """The user and password in an address, as Basic authentication takes them; empty where there are none."""
    found = re.search(r"//([^/?#]*)@", url)
    return unquote(found[1]) if found else ""


def _opener(url: str) -> urllib.request.OpenerDirector:
    proxies = urllib.request.ProxyHandler({}) if is_loopback(url) else urllib.request.ProxyHandler()
    return urllib.request.build_opener(proxies)


def _through(url: str) -> str:
    """Which variable sends a question to which proxy, for the message."""
    parts = urlsplit(url)
    if is_loopback(url) or not parts.hostname or urllib.request.proxy_bypass(parts.hostname):
        return ""
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            if proxy := os.environ.get(variable):
                place = urlsplit(proxy if "://" in proxy else f"//{proxy}")
                return f" (asked through the proxy {place.hostname}:{place.port}, which {variable} names)"
    return ""


def _reason(error: Exception, timeout: float) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError | socket.timeout):
        return f"no answer in {timeout:g} s"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return str(cause) or type(cause).__name__

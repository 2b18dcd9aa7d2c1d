"""How the app is reached from outside: scheme and client address, where a proxy stands in between.

What a proxy says about a request (``X-Forwarded-For``, ``X-Forwarded-Proto``) counts only where the connection comes
from one that was named; anybody else could write the same words. A public URL says the scheme whatever a proxy says.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from alignment.errors import Fault, InputError

PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")  # RFC 1918, RFC 4193
HSTS = "max-age=31536000"  # seconds: a year


@dataclass(frozen=True, slots=True)
class PublicAddress:
    """``url`` is how raters reach the app, without a slash at its end; None: as they say themselves.

    ``proxies`` are the addresses and networks whose word about a request counts.
    """

    url: str | None = None
    proxies: tuple[str, ...] = ()

    @classmethod
    def of(cls, url: str | None, proxies: Sequence[str] = ()) -> "PublicAddress":
        """Checks both. ``private`` among the proxies are all private networks. Raises InputError."""
        faults = [] if url is None else _url_faults(url)
        named: list[str] = []
        for proxy in proxies:
            named += PRIVATE if proxy == "private" else [proxy]
            faults += [] if proxy == "private" else _proxy_faults(proxy)
        if faults:
            raise InputError(faults)
        return cls(None if url is None else url.rstrip("/"), tuple(named))

    @property
    def scheme(self) -> str | None:
        return None if self.url is None else urlsplit(self.url).scheme

    @property
    def host(self) -> str | None:
        """Host and port as a browser writes them."""
        return None if self.url is None else urlsplit(self.url).netloc.lower()


LOCAL = PublicAddress()


def from_outside(app: ASGIApp, address: PublicAddress) -> ASGIApp:
    """``app`` in front of which each request's scheme and client are what they are outside."""
    outer: ASGIApp = _Scheme(app, address)
    if address.proxies:
        outer = ProxyHeadersMiddleware(outer, trusted_hosts=list(address.proxies))  # type: ignore[assignment,arg-type]
    return outer


class FromOutside:
    """:func:`from_outside` as ASGI middleware."""

    def __init__(self, app: ASGIApp, *, address: PublicAddress) -> None:
        self.app = from_outside(app, address)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class _Scheme:
    """Sets the scheme; over https it has browsers come back over nothing else."""

    def __init__(self, app: ASGIApp, address: PublicAddress) -> None:
        self.app, self.address = app, address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["scheme"] = self.address.scheme or scope["scheme"]
        secure = scope["scheme"] == "https"

        async def strictly(message: Message) -> None:
            if message["type"] == "http.response.start" and secure:
                MutableHeaders(scope=message)["strict-transport-security"] = HSTS
            await send(message)

        await self.app(scope, receive, strictly)


def _url_faults(url: str) -> list[Fault]:
    remedy = "give it as https://raters.example.org"
    try:
        parts = urlsplit(url)
        _port = parts.port
    except ValueError:
        return [Fault(f"{url!r} is no address", remedy, field="--public-url")]
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return [Fault(f"{url!r} is no address of http or https", remedy, field="--public-url")]
    if parts.path.strip("/") or parts.query or parts.fragment:
        return [Fault(f"{url!r} goes on after the host, and the app is at its root", remedy, field="--public-url")]
    return []


def _proxy_faults(proxy: str) -> list[Fault]:
    try:
        ipaddress.ip_network(proxy)
    except ValueError:
        remedy = "give an IP address, a network as 10.1.0.0/16, or `private`"
        return [Fault(f"{proxy!r} is no address or network", remedy, field="--trusted-proxy")]
    return []

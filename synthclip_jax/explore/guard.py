"""What stands between the page and strangers: who may ask, how much they may send, where it is kept.

A page on this machine can be reached by any web site that its user visits: a site whose name suddenly points to
127.0.0.1 (DNS rebinding) asks with its own name in the Host header. So only names of this machine and plain addresses
are answered, which no site can take over.
"""

import contextlib
import ipaddress
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

UPLOAD = 32 * 2**20  # bytes of an image that is dropped on the page
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"frame-ancestors 'none'; base-uri 'self'; form-action 'self'; object-src 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
Message = MutableMapping[str, Any]


def own_names(host: str) -> frozenset[str]:
    """The names under which this machine may be asked for the page; `host` is the one it listens on."""
    return frozenset({"localhost", host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()})


def is_allowed(header: str, names: frozenset[str]) -> bool:
    """Whether a Host header names this machine, or is a plain address."""
    name = header.strip().lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return name.rstrip(".") in names


class Guard:
    """ASGI middleware: answers only those who ask for this machine, and adds `HEADERS` to every answer."""

    def __init__(self, app: Callable[..., Awaitable[None]], names: frozenset[str]):
        self.app, self.names = app, names

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if not is_allowed(headers.get(b"host", b"").decode("latin-1"), self.names):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await send({"type": "http.response.start", "status": 421, "headers": [(b"content-type", b"text/plain")]})
            body = b"This page is served by its own machine's name or address only (--host names another one)."
            await send({"type": "http.response.body", "body": body})
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in HEADERS}
                kept = [(name, value) for name, value in message["headers"] if name.lower() not in own]
                message = {**message, "headers": [*kept, *HEADERS]}
            await send(message)

        await self.app(scope, receive, with_headers)


@contextlib.contextmanager
def private_files() -> Iterator[str]:
    """A folder that only this user can read, for what Gradio writes, gone with the page. Before Gradio is imported."""
    os.umask(0o077)
    with tempfile.TemporaryDirectory(prefix="synthclip_jax-explore-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        yield folder

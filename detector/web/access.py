"""Addresses to listen at, and who may ask: on loopback this computer, beyond it who has the token."""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, QueryParams
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from detector.errors import InputError

TOKEN_VARIABLE = "DETECTOR_TOKEN"  # noqa: S105 (its name)
DEFAULT_PORT = "8000"


def parse_address(text: str, option: str) -> tuple[str, int]:
    """Host and port.

    Args:
        text: "HOST:PORT", "HOST", ":PORT" or "PORT".
        option: for the message.

    Raises:
        InputError: the text has another form.
    """
    host, colon, port = text.rpartition(":") if not text.isdigit() else ("", ":", text)
    if not colon:
        host, port = text, DEFAULT_PORT
    if not port.isdigit() or int(port) > 65535:
        raise InputError(f"{option} {text}: expected HOST:PORT, such as 127.0.0.1:8000")
    return host.strip("[]") or "127.0.0.1", int(port)


def is_loopback(host: str) -> bool:
    """Whether only this computer reaches it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def token_for(host: str) -> str:
    """The token that requests need: DETECTOR_TOKEN; without it a new one beyond loopback, none on it."""
    token = os.environ.get(TOKEN_VARIABLE, "")
    return token if token or is_loopback(host) else secrets.token_urlsafe(16)


def with_token(url: str, token: str) -> str:
    """An address that may be opened in a browser."""
    return url + (f"?token={quote(token, safe='')}" if token else "")


def listen(host: str, port: int, option: str) -> tuple[socket.socket, str]:
    """A listening socket, and the URL of what it serves. Raises: InputError: the address is not free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is stated because asyncio turns off Nagle's algorithm only then: 40 ms of an answer.
    server = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((host, port))
        server.listen(1024)
    except OSError as error:
        server.close()
        raise InputError(f"{option} {host}:{port}: {error.strerror or error}") from error
    shown = f"[{host}]" if ":" in host else host
    return server, f"http://{shown}:{server.getsockname()[1]}/"


class Guard:
    """Refuses strangers: without the token; on loopback, what another site's page sends (DNS rebinding included).

    Args:
        app: what it protects.
        token: "" = none is needed.
        loopback: whether it listens on loopback only.
        open_paths: need no token, for those who watch whether it lives.
    """

    def __init__(self, app: ASGIApp, token: str, *, loopback: bool, open_paths: frozenset[str] = frozenset()) -> None:
        self._app, self._token, self._loopback, self._open_paths = app, token, loopback, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, reason = self._refusal(scope)
        if not reason:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocket(scope, receive, send).close(1008, reason)
        else:
            await JSONResponse({"error": reason}, status)(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str]:
        """The status and the reason; "" = none."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            foreign = origin is not None and urlsplit(origin).netloc != host
            local = is_loopback(urlsplit(f"//{host}").hostname or "")
        except ValueError:
            return 400, "the host or the origin of the request is not an address"
        if foreign or headers.get("sec-fetch-site") == "cross-site":
            return 403, "the request comes from another site's page"
        if self._loopback and not local:
            return 403, "the host of the request is not this computer"
        if self._token and scope["path"] not in self._open_paths:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            given = given or QueryParams(scope["query_string"]).get("token", "")
            if not secrets.compare_digest(given.encode(), self._token.encode()):
                return 401, f"expected the token, as ?token=... or Authorization: Bearer ...; see {TOKEN_VARIABLE}"
        return 0, ""

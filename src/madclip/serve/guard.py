"""Who may ask: Host, Origin and tokens are looked at before anything else, and bodies are bounded while they come."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import secrets
import time
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete

from madclip.errors import DataError
from madclip.files import write_whole
from madclip.serve.project import log
from madclip.serve.tables import Session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping
    from pathlib import Path

    from madclip.serve.database import Database

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Message, Receive, Send], Awaitable[None]]

COOKIE = "madclip"
DAY = 86_400.0
CSP = (
    "default-src 'self'; img-src 'self' blob: data:; worker-src 'self' blob:; script-src 'self' 'wasm-unsafe-eval'; "
    "style-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "SAMEORIGIN",
    "cache-control": "no-store",
}
"""What every answer carries where it does not say otherwise itself."""
SAFE = ("GET", "HEAD", "OPTIONS")
OPEN = ("/healthz", "/v1/session")
"""What is answered without a token; and the pages, which hold nothing."""
MAX_JSON, MAX_MASK, MAX_FILES = 8 * 2**20, 2**27, 4 * 2**30
"""Bytes of a body: of JSON, of a mask or a manifest, and of uploaded files together."""
TRIES, WINDOW = 10, 60.0
"""Wrong tokens that are looked at in so many seconds; then all are refused for a while."""
RATE, BURST = 500.0, 5_000.0
"""Requests of one client in a second, and at once: more than a page with thousands of thumbnails asks."""
CLIENTS = 1_000
"""Clients that are counted; of more, those are forgotten that have asked for nothing lately."""


def token_digest(token: str) -> str:
    """What is kept of a token, which is 256 bits of chance and needs no salt."""
    return hashlib.sha256(token.encode()).hexdigest()


def read_tokens(path: Path) -> tuple[tuple[str, ...], str | None]:
    """Digests of the tokens in a file, and, where there was no file, the token that was made for it.

    Raises:
        DataError: The file cannot be read or written, or holds something else.
    """
    try:
        if not path.exists():
            token = secrets.token_urlsafe(32)
            write_whole(path, f"sha256:{token_digest(token)}\n", 0o600)
            return (token_digest(token),), token
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the token file cannot be used ({error})") from None
    found = [line.removeprefix("sha256:") for line in lines if line and not line.startswith("#")]
    if not found or any(len(one) != 64 or set(one) - set("0123456789abcdef") for one in found):
        raise DataError(f"{path}: not a token file, which has lines sha256:DIGEST; name a new file to make one")
    return tuple(found), None


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own and nobody else's."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Rates:
    """How many requests each client may still send: a bucket of `BURST`, filled with `RATE` in a second."""

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, client: str, now: float) -> bool:
        """Whether one more request of a client is let in at a time, in seconds of any clock that only goes forward."""
        left = self._now(client, now)
        self._left[client] = (now, left - (left >= 1))
        if len(self._left) > CLIENTS:
            self._left = {name: held for name, held in self._left.items() if self._now(name, now) < BURST}
        return left >= 1

    def _now(self, client: str, now: float) -> float:
        at, left = self._left.get(client, (now, BURST))
        return min(BURST, left + (now - at) * RATE)


@dataclass
class Guard:
    """An ASGI layer around the application.

    Args:
        app: What it guards.
        database: Where logins are kept.
        tokens: Digests of the tokens; where there are none, only this machine is served.
    """

    app: App
    database: Database
    tokens: tuple[str, ...] = ()
    _wrong: list[float] = field(default_factory=list)
    _rates: Rates = field(default_factory=Rates)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers or refuses one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # nothing here speaks WebSocket
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refused(scope["method"], scope["path"], headers)
        if not self._rates.take(self._client(scope, headers, known=not refused), time.monotonic()):
            refused = 429, "rate", f"more than {RATE:.0f} requests a second: come again in a second"
        if refused:
            await _answer(send, *refused)
            return
        limit = _limit(scope["path"], headers.get("content-type", ""))
        if headers.get("content-length", "0").isdecimal() and int(headers.get("content-length", "0")) > limit:
            await _answer(send, 413, "too_large", f"a body of more than {limit} bytes is not taken here")
            return
        state = _Bounded(receive, send, limit)
        await self.app(scope, state.receive, state.send)

    def _refused(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str, str] | None:
        """Why a request is not let in: status, code and message."""
        host = headers.get("host", "")
        # A page whose own name was made to point at this machine (DNS rebinding) has that name in Host.
        if not self.tokens and not is_loopback(_name(host)):
            return 403, "host", "this server answers to localhost only"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return 403, "origin", "a page of another origin may not ask"
        site = headers.get("sec-fetch-site", "none")
        if site not in ("none", "same-origin") and headers.get("sec-fetch-mode") != "navigate":
            return 403, "origin", "a page of another origin may not ask"
        if method not in SAFE and headers.get("x-madclip") != "1":
            return 403, "header", "a request that changes something needs the header X-Madclip: 1"
        if self.tokens and _is_private(path) and path not in OPEN:
            return self._unknown(headers)
        return None

    def _client(self, scope: Message, headers: dict[str, str], *, known: bool) -> str:
        """Who asks: by a token or login that is known, so that nobody is many by making some up; else an address."""
        if self.tokens and known and _is_private(scope["path"]) and scope["path"] not in OPEN:
            given = headers.get("authorization", "").partition(" ")[2].strip()
            return token_digest(given or _cookie(headers.get("cookie", "")))
        return str((scope.get("client") or ("",))[0])

    def _unknown(self, headers: dict[str, str]) -> tuple[int, str, str] | None:
        given = headers.get("authorization", "")
        if given:
            kind, _, token = given.partition(" ")
            if self.slowed():
                return 429, "slow_down", "too many wrong tokens: come again in a minute"
            if kind.lower() == "bearer" and self.knows(token.strip()):
                return None
            return 401, "token", "this token is not known"
        cookie = _cookie(headers.get("cookie", ""))
        if cookie and self._logged_in(cookie):
            return None
        return 401, "token", "a token is needed: Authorization: Bearer TOKEN"

    def slowed(self) -> bool:
        """Whether too many wrong tokens came lately."""
        since = time.monotonic() - WINDOW
        self._wrong[:] = [at for at in self._wrong if at > since]
        return len(self._wrong) >= TRIES

    def knows(self, token: str) -> bool:
        """Whether a token is one of ours, compared in constant time; a wrong one is counted."""
        digest = token_digest(token)
        known = [hmac.compare_digest(digest, one) for one in self.tokens]
        if not any(known):
            self._wrong.append(time.monotonic())
            log("wrong token")
        return any(known)

    def login(self, token: str) -> str | None:
        """The cookie of a new login, or None where the token is not known."""
        if not self.knows(token):
            return None
        cookie = secrets.token_urlsafe(32)
        with self.database.change() as session:
            session.execute(delete(Session).where(Session.until < time.time()))
            session.add(Session(digest=token_digest(cookie), until=time.time() + DAY))
        return cookie

    def logout(self, cookie: str) -> None:
        """Forgets a login."""
        with self.database.change() as session:
            session.execute(delete(Session).where(Session.digest == token_digest(cookie)))

    def _logged_in(self, cookie: str) -> bool:
        with self.database.look() as session:
            found = session.get(Session, token_digest(cookie))
            return found is not None and found.until > time.time()


def _is_private(path: str) -> bool:
    return path.startswith("/v1/") or path in ("/metrics", "/openapi.json", "/v1")


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower().rstrip(".")


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _limit(path: str, kind: str) -> int:
    """How many bytes a body may have."""
    if kind.startswith("multipart/form-data") and (path == "/v1/uploads" or path.endswith("/predict")):
        return MAX_FILES
    return MAX_MASK if path.startswith("/v1/") and path.endswith((".png", ".nii.gz", "/manifest")) else MAX_JSON


class _Bounded:
    """A request whose body is counted as it comes, and an answer that carries the usual headers."""

    def __init__(self, receive: Receive, send: Send, limit: int) -> None:
        self._receive, self._send, self._left = receive, send, limit
        self._over = self._begun = False

    async def receive(self) -> Message:
        if self._over:
            return {"type": "http.disconnect"}
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0 and not self._over:
            self._over = True
            if not self._begun:
                await _answer(self._send, 413, "too_large", "the body is larger than is taken here")
            return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        if self._over and not self._begun:
            return  # it was answered already
        if message["type"] == "http.response.start":
            self._begun = True
            given = {name.lower() for name, _ in message.get("headers", [])}
            added = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in given]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await self._send(message)


async def _answer(send: Send, status: int, code: str, message: str) -> None:
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    headers = {**HEADERS, "content-type": "application/json", "content-length": str(len(body))}
    if status == 429:
        headers["retry-after"] = "60" if code == "slow_down" else "1"
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})

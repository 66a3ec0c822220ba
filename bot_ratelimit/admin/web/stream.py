"""The current state as server-sent events: one reader of Redis for all connected browsers."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from aiohttp import web

from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.encoding import to_json
from bot_ratelimit.admin.web.console import VISIT, Console, Session
from bot_ratelimit.admin.web.problems import ProblemError
from bot_ratelimit.errors import RateLimitError

log = logging.getLogger("bot_ratelimit")

EVERY: Final = 2.0
"""Seconds between two reads, while a browser is connected."""
HEARTBEAT: Final = 10.0
"""Seconds without data after which a comment keeps the connection open."""
LASTS: Final = 300.0
"""Seconds after which a browser has to reconnect, so that a logout elsewhere ends the stream."""

_SLOWEST: Final = 5.0  # for a browser to take a message
_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "X-Accel-Buffering": "no",  # nginx would keep messages back
}


class Stream:
    """`GET events`: totals by hour, instances and health, at once and then every two seconds.

    Redis is read only while a browser is connected, and once for all browsers.

    Args:
        console: The application's console.
        most: How many browsers may be connected at once.
    """

    def __init__(self, console: Console, most: int) -> None:
        self._console, self._most = console, most
        self._followers = 0
        self._latest = b""
        self._news = asyncio.Event()
        self._polling: asyncio.Task[None] | None = None
        self._closed = False

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Send events until the session or the application ends, or the time is over."""
        if self._closed or self._followers >= self._most:
            raise ProblemError(
                503,
                "too many browsers show this page already: close one",
                headers={"Retry-After": "10"},
            )
        self._followers += 1
        response = web.StreamResponse(headers=_HEADERS)
        try:
            if self._polling is None:
                self._polling = asyncio.get_running_loop().create_task(self._read())
            await response.prepare(request)
            if request.method != "HEAD":
                await self._follow(response, request[VISIT].session)
        except ConnectionError:  # the browser has gone
            pass
        except TimeoutError:  # the browser reads nothing
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._followers -= 1
            if not self._followers:
                self._rest()
        return response

    async def close(self, _: web.Application) -> None:
        """End all streams when the application stops."""
        self._closed = True
        self._news.set()
        self._rest()

    async def _follow(self, response: web.StreamResponse, session: Session) -> None:
        clock = self._console.clock
        until = min(session.expires, clock() + LASTS)
        message = b"retry: 1000\n" + self._latest if self._latest else b"retry: 1000\n\n"
        while not self._closed and clock() < until:
            news = self._news
            async with asyncio.timeout(_SLOWEST):
                await response.write(message)
            message = b": keep-alive\n\n"
            try:
                async with asyncio.timeout(HEARTBEAT):
                    await news.wait()
                message = self._latest
            except TimeoutError:
                continue

    async def _read(self) -> None:
        control = self._console.control("stream@web")
        while True:
            content = to_json(await _looked(control, self._console.clock))
            self._latest = f"data: {content}\n\n".encode()
            news, self._news = self._news, asyncio.Event()
            news.set()
            await asyncio.sleep(EVERY)

    def _rest(self) -> None:
        """Stop reading: no browser is connected any more."""
        if self._polling is not None:
            self._polling.cancel()
        self._polling, self._latest = None, b""


async def _looked(control: Control, clock: Any) -> dict[str, Any]:
    """The content of a message; see docs/admin-api.md."""
    found: dict[str, Any] = {"at": clock(), "hours": None, "instances": [], "problem": ""}
    try:
        found["health"] = health = await control.health()
        found["version"] = health.version
        instances = await control.instances()
        found["instances"] = [
            {"name": each.name, "version": each.version, "problem": each.problem}
            for each in instances
        ]
        found["hours"] = await control.by_hour()
    except RateLimitError as error:
        found["problem"] = str(error)
    except Exception:
        log.exception("admin_app: reading for the event stream failed")
        found["problem"] = "a bug: see the bot's log"
    return found

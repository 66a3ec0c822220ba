"""The current state as server-sent events: Redis is read once for all connected browsers."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any, Final

from aiohttp import web

from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.encoding import to_json
from bot_ratelimit.admin.web.console import SESSION, Console, Session
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

    Args:
        console: The application's console.
        most: How many browsers may be connected at once.
    """

    def __init__(self, console: Console, most: int) -> None:
        self._console, self._free = console, most
        self._control = console.control("stream@web")
        self._latest, self._number, self._due = b"", 0, 0.0
        self._reading = asyncio.Lock()
        self._closed = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Send events until the session or the application ends, or the time is over."""
        if self._closed.is_set() or self._free <= 0:
            text = "too many browsers show this page already: close one"
            raise ProblemError(503, text, headers={"Retry-After": "10"})
        self._free -= 1
        response = web.StreamResponse(headers=_HEADERS)
        try:
            await response.prepare(request)
            if request.method != "HEAD":
                await self._follow(response, request[SESSION])
        except ConnectionError:  # the browser has gone
            pass
        except TimeoutError:  # the browser reads nothing
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._free += 1
        return response

    async def close(self, _: web.Application) -> None:
        """End all streams when the application stops."""
        self._closed.set()

    async def _follow(self, response: web.StreamResponse, session: Session) -> None:
        clock, seen, message = self._console.clock, 0, b"retry: 1000\n\n"
        until = min(session.expires, clock() + LASTS)
        while not self._closed.is_set() and clock() < until:
            async with asyncio.timeout(_SLOWEST):
                await response.write(message)
            if seen:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closed.wait(), min(EVERY, HEARTBEAT))
            number, latest = await self._look()
            message = b": keep-alive\n\n" if number == seen else latest
            seen = number

    async def _look(self) -> tuple[int, bytes]:
        """The number and the text of the latest message; Redis is read if it is time to."""
        async with self._reading:
            if time.monotonic() >= self._due:
                content = to_json(await _looked(self._control, self._console.clock))
                self._latest, self._number = f"data: {content}\n\n".encode(), self._number + 1
                self._due = time.monotonic() + EVERY
            return self._number, self._latest


async def _looked(control: Control, clock: Any) -> dict[str, Any]:
    """The content of a message; see docs/admin-api.md."""
    found: dict[str, Any] = {"at": clock(), "hours": None, "instances": [], "problem": ""}
    try:
        found["health"] = health = await control.health()
        found["version"] = health.version
        found["instances"] = [
            {"name": each.name, "version": each.version, "problem": each.problem}
            for each in await control.instances()
        ]
        found["hours"] = await control.by_hour()
    except RateLimitError as error:
        found["problem"] = str(error)
    except Exception:
        log.exception("admin_app: reading for the event stream failed")
        found["problem"] = "a bug: see the bot's log"
    return found

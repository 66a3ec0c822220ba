"""What happens now, as server-sent events: one reader for every browser that looks."""

from __future__ import annotations

import asyncio

from aiohttp import web

from bot_ratelimit.admin.encoding import to_json
from bot_ratelimit.admin.web.console import control_of

EVERY = 2.0


def add_events(app: web.Application, max_streams: int) -> None:
    """Add `GET events`."""
    app.router.add_get("/events", _events)


async def _events(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    control = control_of(request)
    while True:
        health = await control.health()
        instances = await control.instances()
        shown = {
            "at": 0.0,
            "hours": [],
            "version": health.version,
            "instances": [{"name": each.name, "version": each.version, "problem": each.problem}
                          for each in instances],
            "health": health,
        }  # fmt: skip
        await response.write(f"data: {to_json(shown)}\n\n".encode())
        await asyncio.sleep(EVERY)

"""The dashboard: the page for operators beside a busy bot."""

from __future__ import annotations

import asyncio
import re
import signal
from typing import Any

import pytest
from aiohttp import ClientSession

from bot_ratelimit import RateLimitMiddleware
from example_bot.bot import build_dispatcher
from example_bot.demo.backend import Embedded
from example_bot.demo.botapi import BotApi
from example_bot.demo.dashboard import traffic
from example_bot.demo.instances import serve
from tests.benches import eventually
from tests.servers import PATIENCE

from .conftest import Start


@pytest.mark.slow
async def test_a_newcomer_sees_refusals_and_bans_and_changes_a_limit(start: Start) -> None:
    """Without token, Telegram or Redis of one's own; Ctrl-C ends it with status 0 and no word."""
    process = await start("example_bot.demo.dashboard")
    door = (await process.said("  Open ")).split()[-1]
    async with ClientSession(f"{door.rpartition('/')[0]}/admin/") as session:

        async def get(page: str) -> Any:
            async with session.get(f"api/{page}") as answer:
                return await answer.json()

        async def flooded() -> bool:
            bans, hours = await get("bans"), await get("by_hour?hours=1")
            if not (isinstance(bans, list) and isinstance(hours, list) and bans):
                return False  # in the outage, both are errors
            return bool(bans[0]["by"] == "penalty" and hours[-1]["banned"] and hours[-1]["refused"])

        async def changed() -> bool:
            async with session.patch("api/limits/messages", json={"limit": "3/10s"}) as answer:
                return answer.status == 200

        async def obeyed() -> bool:
            found = await get("instances")
            return isinstance(found, list) and [each["version"] for each in found] == [1, 1, 1]

        async with session.get("") as answer:
            assert (answer.status, "Overview" in await answer.text()) == (200, False)
        async with session.get(door) as answer:  # what logs in, in a browser by itself
            (token,) = re.findall('name="token" value="([^"]+)"', await answer.text())
        async with session.post("login", data={"token": token, "name": "demo"}) as answer:
            assert (answer.status, (await answer.json())["by"]) == (200, "demo@web")
        session.headers["Authorization"] = f"Bearer {token}"
        async with session.get("", headers={"Accept": "text/html"}) as answer:
            page = await answer.text()
        assert ("Overview" in page, token in page) == (True, False)
        for step in (flooded, changed, obeyed):
            await eventually(step, within=PATIENCE)
    process.stop(signal.SIGINT)
    status, out, err = await process.finished()
    assert (status, err) == (0, "")
    assert out.endswith("Stopping ...\n")
    assert not re.search("Traceback|Unclosed|Error", out)


@pytest.mark.slow
async def test_the_crowd_goes_on_and_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scene follows scene, and the stand-in for Telegram does not remember the ones before.

    Stopped while Redis is away, it gives Redis back, so that the bots can say goodbye.
    """
    scenes = [traffic.Scene(name, 0.2, people=100, flood=50) for name in "ab"]
    scenes.append(traffic.Scene("away", 1, people=50, outage=True))
    monkeypatch.setattr(traffic, "SCENES", scenes)
    backend, told, most = Embedded(), list[str](), 0
    async with BotApi() as api, backend.client() as client:
        middleware = RateLimitMiddleware("5/10s", client, timeout=5)
        runner = await serve(api, build_dispatcher(middleware))
        crowd = asyncio.create_task(traffic.Traffic(api, backend, told.append).run())
        async with asyncio.timeout(30):
            while len(told) < 6:
                await asyncio.sleep(0.01)
                most = max(most, len(api.calls))
        assert told == ["a", "b", "away"] * 2
        assert 0 < most < 200
        assert not backend._server.connected
        crowd.cancel()
        await asyncio.wait([crowd])
        assert crowd.cancelled()
        assert backend._server.connected
        await runner.cleanup()

"""The dashboard: the page for operators beside a busy bot."""

from __future__ import annotations

import re
import signal
from typing import Any

import pytest
from aiohttp import ClientSession

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

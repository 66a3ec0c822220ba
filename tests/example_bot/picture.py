"""`python -m tests.example_bot.picture` takes docs/images/operators.png; needs Chromium."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from pathlib import Path

from tests.chromium import NOT_RUN, chromium, find_chromium

from .conftest import ROOT, Process

SCENE = "Rush hour"
"""By then there was a flood, and an outage; some of the bans go on."""
SECONDS = 12.0


async def main() -> int:
    """Run the dashboard, and photograph its page."""
    if find_chromium() is None:
        sys.exit(NOT_RUN)
    with tempfile.TemporaryDirectory() as directory:
        process = await Process.start("example_bot.demo.dashboard", Path(directory))
        try:
            door = (await process.said("  Open ")).split()[-1]
            await process.said(SCENE)
            await asyncio.sleep(SECONDS)
            async with chromium() as browser:
                page = await browser.new_page(viewport={"width": 1100, "height": 1150})
                await page.goto(door)
                await page.get_by_role("link", name="24 hours").click()
                await page.get_by_role("heading", name="24 hours").first.wait_for()
                await page.evaluate("scrollTo(0, 0)")
                await page.screenshot(path=ROOT / "docs" / "images" / "operators.png")
            process.stop(signal.SIGINT)
            status, _, err = await process.finished()
        finally:
            await process.abandon()
    sys.stderr.write(err)
    return status


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

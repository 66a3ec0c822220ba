"""Chromium for the tests: installed, with Playwright to drive it and axe to judge its pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

NOT_RUN = (
    "NOT RUN: no Chromium here. To run these tests: apt-get install chromium, or set CHROMIUM_BIN "
    "to the path of Chromium or Chrome"
)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_chromium() -> str | None:
    """The path of Chromium; None if it is not installed."""
    found = os.environ.get("CHROMIUM_BIN") or next(filter(None, map(shutil.which, _NAMES)), None)
    return found if found and find_spec("playwright") is not None else None


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A browser without a window."""
    from playwright.async_api import async_playwright

    # Its sandbox does not work for root, as which containers run; the only pages are our own.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=find_chromium(), args=[*options, "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            await browser.close()


async def violations(page: Page, rules: Sequence[str] = ()) -> list[str]:
    """What axe finds on the page that is serious or critical, by these rules, or else by all."""
    # Not add_script_tag, which the page's own policy forbids.
    await page.evaluate(_axe())
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    if rules:
        options["runOnly"] = [*rules]
    found: dict[str, Any] = await page.evaluate("options => axe.run(options)", options)
    return [
        f"{each['id']} ({each['impact']}): {node['html'][:200]}"
        for each in found["violations"]
        if each["impact"] in {"serious", "critical"}
        for node in each["nodes"]
    ]


@cache
def _axe() -> str:
    import axe_playwright_python

    return (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()

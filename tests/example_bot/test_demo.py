"""The demo, which reports every difference from what it expects, and the dashboard."""

from __future__ import annotations

import io
import re
import signal
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from aiohttp import ClientSession
from rich.console import Console

from bot_ratelimit import RateLimitMiddleware
from example_bot.demo import __main__ as demo
from example_bot.demo.backend import Embedded
from example_bot.demo.botapi import BotApi
from example_bot.demo.context import DemoContext, LogCapture
from example_bot.demo.crowd import Activity, play
from example_bot.demo.dashboard import __main__ as dashboard
from example_bot.demo.display import Display
from example_bot.demo.results import Outcome, Results, Step
from example_bot.demo.scenarios import scenario_two
from tests.benches import eventually
from tests.servers import PATIENCE
from tests.tables import table

from .conftest import Start

GOOD = Outcome(1, "users", sent=6, handled=5, expected=5, lost=0, told="", latencies=(0.001,) * 6)


def results(*outcomes: Outcome, **checks: bool) -> Results:
    return Results([Step("1", [GOOD]), Step("2 one at a time", outcomes)], checks)


def shown(results: Results) -> str:
    console = Console(file=io.StringIO(), width=80)
    display = Display(console)
    display.table(results)
    display.conclusion(results)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.slow
async def test_demo_runs_and_every_count_is_as_expected(start: Start) -> None:
    """`make demo` needs no token, Telegram or Redis; all counts are as expected, status 0."""
    process = await start("example_bot.demo")
    status, out, err = await process.finished()
    assert (status, err) == (0, ""), out + err
    assert re.findall(r"3 flooders +(\d+) +(\d+) +(\d+) +(\d+) .* yes\b", out) == [
        *(("180", "45", "45", "135"), ("180", "15", "15", "165"), ("30", "0", "0", "30")),
        *(("60", "0", "0", "60"), ("6", "6", "6", "0"), ("60", "15", "15", "45")),
        *(("60", "60", "60", "0"), ("60", "0", "0", "60")),
    ]
    assert len(re.findall(r"40 users +(\d+) +\1 +\1 +0 .* yes\b", out)) == 5
    assert re.findall(r"8 users +(\d+) +\1 +\1 +0 .* yes\b", out) == ["80", "8"]
    sent = re.findall(r"4 with +(\w+) +(\d+) +\d+ +0 .* yes\b", out)
    assert sent == [("answers", "54"), ("edits", "40"), ("broadcast", "60")]
    assert len(re.findall(r"4 without .* NO\b", out)) == 3
    told = out.partition("in the language of their Telegram:\n")[2].splitlines()[:2]
    assert re.fullmatch(r"  Too many requests\. Please try again in \d+ s\.", told[0])
    assert re.fullmatch(r"  Слишком много запросов\. Попробуйте снова через \d+ с\.", told[1])
    assert 'RateLimitMiddleware("5/minute", Redis()).setup(dispatcher)' in out
    assert max(map(len, out.splitlines())) <= 80
    assert re.findall(r"2 one at a time +3 users +3 +3 +3 +0 .* yes\b", out)
    assert "yes: the 3 instances made their reports one after the other" in " ".join(out.split())
    assert out.count("log: ERROR Redis rate limit check failed") == 1
    assert "Everything happened as expected.\n\nWhat you have seen:\n" in out
    last = out.partition("What to do next:")[2]
    assert all(step in last for step in ("README.md", "BOT_TOKEN", "-m example_bot", "deploy/"))


def test_the_table_fits_into_80_columns() -> None:
    """No heading and no number is cut; if all is as expected, there is nothing to report."""
    slow = replace(GOOD, person=2, group="flooders", latencies=(1.234, 0.5, 0.5))
    good = results(*[GOOD] * 40, *[slow] * 3, wet=True)
    assert good.differences() == []
    assert "Everything happened as expected." in shown(good)
    table = shown(good).partition("Sent: ")[0]
    assert "…" not in table
    assert max(map(len, table.splitlines())) <= 80
    assert re.search(r"40 users +240 +200 +200 +40 .* yes", table)
    assert re.search(r"3 flooders +18 +15 +15 +3 +500 +1234 +yes", table)


COUNT = "2 one at a time: users 1: {} of 6 were handled, expected 5, {} were not accepted"


@table(
    ("bad", "differences"),
    [
        (results(replace(GOOD, handled=4)), [COUNT.format(4, 0)]),
        (results(replace(GOOD, lost=2)), [COUNT.format(5, 2)]),
        # A correct total is not enough: each user is checked.
        (
            results(replace(GOOD, handled=6), replace(GOOD, handled=4)),
            [COUNT.format(6, 0), COUNT.format(4, 0)],
        ),
        (results(GOOD, flying=False), ["not true: flying"]),
        (Results(), ["nothing was measured"]),
    ],
)
def test_any_difference_is_named(bad: Results, differences: list[str]) -> None:
    """A wrong count, a lost message or an unmet check is named."""
    assert bad.differences() == differences
    assert differences[0] in shown(bad)
    assert "Not everything happened as expected" in shown(bad)
    assert ("NO" in shown(bad)) == bool(bad.steps)


@pytest.mark.slow
async def test_a_bot_without_a_feature_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limiter that splits albums, loses payments or leaves buttons unanswered fails the demo.

    It measures what the bot did: with another limit on the bot the check fails, too.
    """

    async def at_once(api: BotApi, activities: Sequence[Activity], _: float) -> list[Outcome]:
        return await play(api, activities, 0)

    less = partial(RateLimitMiddleware, never_refuse=(), on_limited=None)
    monkeypatch.setattr("example_bot.demo.context.play", at_once)
    monkeypatch.setattr("example_bot.demo.context.RATE_LIMIT", "4/minute")
    monkeypatch.setattr("example_bot.demo.instances.RateLimitMiddleware", less)
    monkeypatch.setattr("bot_ratelimit.incoming.event_filter.album_of", lambda event: None)
    context = DemoContext(Display(Console(file=io.StringIO())), Embedded(), LogCapture())
    await scenario_two(context)
    assert {
        "2 shared Redis: flooders 9000: 4 of 60 were handled, expected 5, 0 were not accepted",
        "2 albums: users 1002: 1 of 10 were handled, expected 10, 0 were not accepted",
        "2 payments: flooders 9000: 0 of 2 were handled, expected 2, 0 were not accepted",
        "not true: every button press was answered, refused or not",
    } <= {*context.results.differences()}


def test_ctrl_c_during_the_import(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopping the demo, or the dashboard, at any time prints no traceback."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("builtins.__import__", interrupted)
        status = [demo.main(), dashboard.main()]
    assert status == [130, 0]
    assert capsys.readouterr() == ("", "Stopped before the end: no results.\n")


@pytest.mark.slow
async def test_a_newcomer_at_the_dashboard_sees_bans_and_changes_a_limit(start: Start) -> None:
    """It needs no token, Telegram or Redis; Ctrl-C ends it with status 0 and without an error."""
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
        door = f"/{door.rpartition('/')[2]}"  # what logs in, in a browser by itself
        async with session.get(door) as answer:
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

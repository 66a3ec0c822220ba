"""The demo: it runs as documented, and it reports every difference from what it expects."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
from rich.console import Console

from bot_ratelimit import RateLimitMiddleware
from example_bot.demo.__main__ import main
from example_bot.demo.backend import Embedded
from example_bot.demo.botapi import BotApi
from example_bot.demo.context import DemoContext, LogCapture
from example_bot.demo.crowd import Activity, crowd, play, writing
from example_bot.demo.display import Display
from example_bot.demo.instances import instances
from example_bot.demo.results import Outcome, Results, Step, percentile
from example_bot.demo.scenarios import scenario_two

from .conftest import Start

GOOD = Outcome(1, "users", sent=6, handled=5, expected=5, lost=0, told="", latencies=(0.001,) * 6)


def results(outcome: Outcome, **checks: bool) -> Results:
    return Results([Step("1", [GOOD]), Step("2", [GOOD, outcome])], checks)


def shown(results: Results, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
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
    rows = [
        [int(number) for number in match.groups()]
        for match in re.finditer(r"3 flooders +(\d+) +(\d+) +(\d+) +(\d+) .* yes\b", out)
    ]
    assert rows == [
        [180, 45, 45, 135],
        [180, 15, 15, 165],
        [30, 0, 0, 30],
        [60, 0, 0, 60],
        [6, 6, 6, 0],
        [60, 15, 15, 45],
        [60, 60, 60, 0],
        [60, 0, 0, 60],
    ]
    assert len(re.findall(r"40 users +(\d+) +\1 +\1 +0 .* yes\b", out)) == 5
    assert re.findall(r"8 users +(\d+) +\1 +\1 +0 .* yes\b", out) == ["80", "8"]
    sent = re.findall(r"4 with +(\w+) +(\d+) +(\d+) +(\d+) ", out)
    assert [(what, int(asked)) for what, asked, _, _ in sent] == [
        ("answers", 54),
        ("edits", 40),
        ("broadcast", 60),
    ]
    assert [refused for *_, refused in sent] == ["0"] * 3
    assert re.findall(r"4 (without|with) .* (yes|NO)\b", out) == [
        *[("without", "NO")] * 3,
        *[("with", "yes")] * 3,
    ]
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
    for step in ("README.md", "BOT_TOKEN", "-m example_bot", "deploy/"):
        assert step in last


def test_nothing_differs_if_everything_is_as_expected() -> None:
    """If all counts are as expected and all checks met, there is nothing to report."""
    good = results(GOOD, wet=True)
    assert good.differences() == []
    assert "Everything happened as expected." in shown(good)


def test_the_table_fits_into_80_columns() -> None:
    """No heading and no number of the table is cut."""
    slow = replace(GOOD, person=2, group="flooders", latencies=(1.234,))
    table = shown(Results([Step("2 one at a time", [GOOD] * 40 + [slow] * 3)])).partition("Sent: ")[
        0
    ]
    assert "…" not in table
    assert max(map(len, table.splitlines())) <= 80
    assert re.search(r"40 users +240 +200 +200 +40 .* yes", table)
    assert re.search(r"3 flooders +18 +15 +15 +3 .*1234 +yes", table)


@pytest.mark.parametrize(
    ("bad", "difference"),
    [
        (
            results(replace(GOOD, handled=6)),
            "2: users 1: 6 of 6 were handled, expected 5, 0 were not accepted",
        ),
        (
            results(replace(GOOD, handled=4)),
            "2: users 1: 4 of 6 were handled, expected 5, 0 were not accepted",
        ),
        (
            results(replace(GOOD, lost=2)),
            "2: users 1: 5 of 6 were handled, expected 5, 2 were not accepted",
        ),
        (results(GOOD, flying=False), "not true: flying"),
        (Results(), "nothing was measured"),
    ],
)
def test_any_difference_is_named(bad: Results, difference: str) -> None:
    """A wrong count, a lost message or an unmet check is named."""
    assert bad.differences() == [difference]
    assert difference in shown(bad)
    assert "Not everything happened as expected" in shown(bad)


def test_errors_of_two_users_do_not_cancel_out() -> None:
    """A correct total is not enough: each user is checked."""
    too_many, too_few = replace(GOOD, handled=6), replace(GOOD, person=2, handled=4)
    bad = Results([Step("1", [too_many, too_few])])
    assert len(bad.differences()) == 2
    assert re.search(r"2 users +12 +10 +10 +2 .* NO", shown(bad))


async def test_a_bot_with_another_limit_fails(api: BotApi) -> None:
    """The demo measures what the bot did: with a limit of 3 on the bot the check for 5 fails."""
    people = crowd(users=[2], flooders=[9])
    async with instances(api, 3, "1/minute", "test"):
        outcomes = await play(api, writing(people, lambda p: min(p.messages, 5)), 0)
    assert [(each.sent, each.handled, each.lost) for each in outcomes] == [(2, 2, 0), (9, 3, 0)]
    found = Results([Step("1", outcomes)])
    assert found.differences() == [
        "1: flooders 9000: 3 of 9 were handled, expected 5, 0 were not accepted",
    ]


MIDDLEWARE = "example_bot.demo.instances.RateLimitMiddleware"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "without", "difference"),
    [
        (
            "bot_ratelimit.incoming.event_filter.album_of",
            lambda event: None,
            "2 albums: users 1002: 2 of 10 were handled, expected 10, 0 were not accepted",
        ),
        (
            MIDDLEWARE,
            partial(RateLimitMiddleware, never_refuse=()),
            "2 payments: flooders 9000: 0 of 2 were handled, expected 2, 0 were not accepted",
        ),
        (
            MIDDLEWARE,
            partial(RateLimitMiddleware, on_limited=None),
            "not true: every button press was answered, refused or not",
        ),
    ],
    ids=["albums", "payments", "buttons"],
)
async def test_a_bot_without_a_feature_fails(
    name: str, without: object, difference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limiter that splits albums, loses payments or leaves buttons unanswered fails the demo."""

    async def at_once(api: BotApi, activities: Sequence[Activity], _: float) -> list[Outcome]:
        return await play(api, activities, 0)

    monkeypatch.setattr("example_bot.demo.context.play", at_once)
    monkeypatch.setattr(name, without)
    context = DemoContext(Display(Console(file=io.StringIO())), Embedded(), LogCapture())
    await scenario_two(context)
    assert difference in context.results.differences()


def test_ctrl_c_during_the_import(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopping the demo prints one line and no traceback, at any time."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("builtins.__import__", interrupted)
        status = main()
    assert status == 130
    assert capsys.readouterr().err == "Stopped before the end: no results.\n"


def test_percentiles_are_measured_values() -> None:
    """The p99 of a hundred values is the 99th, the p50 the 50th, and without values it is 0."""
    hundred = range(100, 0, -1)
    assert percentile(hundred, 0.99) == 99
    assert percentile(hundred, 0.5) == 50
    assert percentile([7.0], 0.99) == percentile([7.0], 0.5) == 7.0
    assert percentile([], 0.5) == 0.0

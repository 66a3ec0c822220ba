"""Bots: what a middleware adds to the way of an update through aiogram."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from aiogram import Bot, Dispatcher
from aiogram.types import Message, Update

from benchmarks.contestant import Setting, allowance, visitors
from benchmarks.guards import GUARDS, Nobody, OursOnRedis
from benchmarks.measure import EARLIER, WARM_UP, Figures, check, drive
from benchmarks.race import Run, race
from benchmarks.records import Absence, Record, Records, Spread
from benchmarks.tables import Table, digits, number, ranged

NAME: Final = "bots"
CONCURRENCY: Final = (1, 100)
# As many as the fastest could handle in one measurement; nobody meets one twice.
UPDATES: Final = 8_000
TOKEN: Final = "42:" + "A" * 35


def case(concurrency: int) -> str:
    return f"feed_update, {concurrency} at a time"


def raw_update(number: int, user: int) -> dict[str, Any]:
    """What Telegram sends for a text in a private chat."""
    person = {"id": user, "is_bot": False, "first_name": "Ada", "language_code": "en"}
    chat = {"id": user, "type": "private", "first_name": "Ada"}
    message = {"message_id": number, "date": 1_700_000_000, "chat": chat, "from": person}
    return {"update_id": number, "message": message | {"text": f"text {number}"}}


class Desk:
    """A dispatcher with one handler, which counts."""

    def __init__(self) -> None:
        self.dispatcher = Dispatcher()
        self.handled = 0

    async def open(self, guard: Any, setting: Setting) -> None:
        router = await guard.stand(self.dispatcher, setting)

        async def count(message: Message) -> None:
            self.handled += 1

        router.message.register(count)


def measure(run: Run) -> Iterator[Record | Absence]:
    logging.getLogger("bot_ratelimit").setLevel(logging.ERROR)  # no warning for each new memory
    bot = Bot(TOKEN)

    def updates(shift: int, count: int) -> list[Update]:
        return [
            Update.model_validate(raw_update(shift + i, 1 + user), context={"bot": bot})
            for i, user in enumerate(islice(visitors(shift), count))
        ]

    earlier, now = updates(EARLIER, 500), updates(0, UPDATES)
    gc.collect()
    gc.freeze()  # so that the collector does not look through them again and again

    async def feed(who: str, concurrency: int) -> Figures:
        guard, desk = GUARDS[who](), Desk()
        await desk.open(guard, Setting(run.server.url, concurrency))

        async def act(update: Update) -> None:
            await desk.dispatcher.feed_update(bot, update)

        try:
            await drive(act, earlier, concurrency, WARM_UP)
            run.server.flush()
            gc.collect()
            desk.handled = 0
            done = await drive(act, now, concurrency, run.seconds)
        finally:
            await guard.close()
        check(desk.handled, allowance(done.calls) if guard.limits else done.calls)
        return done.figures()

    cases = {case(n): list(GUARDS) for n in CONCURRENCY}
    settings = {case(n): n for n in CONCURRENCY}
    return race(run, NAME, cases, lambda at, who: asyncio.run(feed(who, settings[at])))


def tables(records: Records) -> list[Table]:
    return [rates(records, NAME, *map(case, CONCURRENCY))]


def rates(records: Records, concern: str, alone: str, crowded: str) -> Table:
    """Updates a second, what is left of the bare bot's, and what is added to each update."""

    def rate(at: str, who: str) -> tuple[str, str]:
        share = records.ratio(concern, at, who, Nobody.name)
        return number(records.spread(concern, at, who, "rate")), ranged(share)

    def milliseconds(who: str) -> str:
        p99 = records.spread(concern, crowded, who, "p99_us")
        return "–" if p99 is None else digits(p99.median / 1_000)

    return Table(
        "Updates a second",
        (
            "",
            "1 at a time",
            "of the bare bot's",
            "100 at a time",
            "of the bare bot's",
            "µs added to each",
            "p99, ms",
        ),
        [
            (
                who,
                *rate(alone, who),
                *rate(crowded, who),
                _added(records, concern, crowded, who),
                milliseconds(who),
            )
            for who in records.who(concern)
        ],
        "Added, and p99: with 100 at a time.",
    )


def _added(records: Records, concern: str, at: str, who: str) -> str:
    rates = [records.spread(concern, at, each, "rate") for each in (who, Nobody.name)]
    if None in rates or who == Nobody.name:
        return "–"
    taken, bare = (1e6 / rate.median for rate in rates if rate is not None)
    return digits(taken - bare)


def kept(records: Records) -> Spread | None:
    """What our middleware on Redis leaves of the bare bot's updates a second."""
    return records.ratio(NAME, case(100), OursOnRedis.name, Nobody.name)

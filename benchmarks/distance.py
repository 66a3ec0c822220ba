"""Distance: a server that is far away. Busy loop: a bot that blocks its own event loop.

Every candidate has a time-out of 0.25 s: `bot_ratelimit` its own, the others `asyncio.wait_for`, as
a careful author would add it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Final

from benchmarks.candidate import Candidate, Setting, visitor, visitors
from benchmarks.comparison import ON_REDIS, Benchmark, Measurements, Run, compare
from benchmarks.measure import EARLIER, Figures, drive
from benchmarks.ours import NAME as OURS
from benchmarks.records import Records
from benchmarks.server import distant
from benchmarks.tables import Column, Table, grid

DEADLINE: Final = 0.25
STARTERS: Final = (OURS, "limits", "hand-written MULTI", "aiogram-sentinel")

ROUND_TRIPS: Final = (0, 5, 20, 60, 120)
TOGETHER: Final = 100
# From the start, for this many seconds; only the second half counts.
ARRIVALS, COLD_SECONDS = 100, 2

AWAY: Final = (0.05, 0.3, 1.0, 3.0)
EACH_TURN: Final = 0.06
WAITING: Final = 40

Ask = Callable[[int], Coroutine[None, None, bool]]


def at(round_trip: int) -> str:
    return f"{round_trip} ms"


def away(seconds: float) -> str:
    return f"loop blocked for {seconds:g} s"


def _careful(who: str, candidate: Candidate) -> Ask:
    """Return whether Redis decided in time; any failure is a lost answer."""

    async def ask(user: int) -> bool:
        try:
            if who == OURS:
                await candidate.hit(user)
            else:
                await asyncio.wait_for(candidate.hit(user), DEADLINE)
        except Exception:  # time-outs, lost connections, exhausted pools
            return False
        return True

    return ask


async def _connect(candidate: Candidate, connections: int) -> None:
    """Open the connections without a time-out, so that connecting is not measured."""
    for _ in range(20):
        asked = (candidate.hit(EARLIER + i) for i in range(connections))
        found = await asyncio.gather(*asked, return_exceptions=True)
        if not any(isinstance(each, Exception) for each in found):
            return
        await asyncio.sleep(0.1)
    raise ConnectionError("it cannot connect")


async def _from_afar(who: str, setting: Setting, seconds: float) -> Figures:
    """First like a starting bot, with updates one by one; then connected, 100 at a time."""
    candidate = ON_REDIS[who]()
    await candidate.setup(setting)
    ask = _careful(who, candidate)
    try:
        arrived: list[asyncio.Task[bool]] = []
        began = time.perf_counter()
        for i in range(ARRIVALS * COLD_SECONDS):
            await asyncio.sleep(began + i / ARRIVALS - time.perf_counter())
            arrived.append(asyncio.create_task(ask(EARLIER + visitor(i))))
        started = (await asyncio.gather(*arrived))[len(arrived) // 2 :]
        await _connect(candidate, TOGETHER)
        done = await drive(ask, visitors(), TOGETHER, seconds, turn=True)
    finally:
        await candidate.close()
    return done.figures() | {
        "share_started": sum(started) / len(started),
        "share": done.agreed / done.calls,
        "share_lost": 1 - done.agreed / done.calls,
        "rate": done.agreed / done.seconds,
    }


def _measure_distance(run: Run) -> Measurements:
    starters = STARTERS[:2] if run.quick else STARTERS
    with ExitStack() as stack:
        ports = {
            at(ms): stack.enter_context(distant(run.server.port, ms / 1_000))
            for ms in (ROUND_TRIPS if not run.quick else ROUND_TRIPS[::4])
        }

        def measure(case: str, who: str) -> Figures:
            run.server.flush()
            setting = Setting(f"redis://127.0.0.1:{ports[case]}", TOGETHER)
            return asyncio.run(_from_afar(who, setting, run.seconds * 4))

        yield from compare(run.fewer(0.6), "distance", dict.fromkeys(ports, starters), measure)


def _tables_of_distance(records: Records) -> list[Table]:
    def show(title: str, figure: str, scale: float = 1.0, note: str = "") -> Table:
        columns = [Column(at(ms), at(ms), figure, scale) for ms in ROUND_TRIPS]
        return grid(records, "distance", f"{title}, by round trip", columns, note)

    return [
        show(
            "Updates decided by Redis within 0.25 s, in the second second after the start",
            "share_started",
            note=f"{ARRIVALS} updates a second, each on its own. A new connection of redis-py "
            "takes several round trips. (The proxy accepts at once, so TCP's own is not counted.)",
        ),
        show(
            f"Updates decided by Redis within 0.25 s, once {TOGETHER} connections are open",
            "share",
            note=f"{TOGETHER} at a time, without a pause; so in the two tables below.",
        ),
        show("Decisions a second by Redis", "rate"),
        show("p99 of all answers, in milliseconds", "p99_us", 1e-3),
    ]


# -------------------------------------------------------------------------------------------------
# Busy loop


async def _while_away(who: str, setting: Setting, seconds: float) -> Figures:
    candidate = ON_REDIS[who]()
    await candidate.setup(setting)
    ask = _careful(who, candidate)
    try:
        await _connect(candidate, WAITING)
        if seconds == EACH_TURN:
            blocking = asyncio.create_task(_block_each_turn())
            answers = await asyncio.gather(*(ask(user) for user in range(WAITING)))
            blocking.cancel()
        else:
            asked = [asyncio.create_task(ask(user)) for user in range(WAITING)]
            for _ in range(3):  # until all have asked: redis-py takes some turns of the loop
                await asyncio.sleep(0)
            time.sleep(seconds)  # noqa: ASYNC251 - what is measured: a handler that blocks the loop
            answers = await asyncio.gather(*asked)
    finally:
        await candidate.close()
    return {"share_lost": 1 - sum(answers) / len(answers)}


async def _block_each_turn() -> None:
    while True:
        time.sleep(EACH_TURN)  # noqa: ASYNC251 - what is measured: tasks that take their time
        await asyncio.sleep(0)


def _measure_busy(run: Run) -> Measurements:
    seconds = (EACH_TURN, *(s for s in AWAY if not run.quick or s <= 0.3))
    cases = {_busy_case(each): each for each in seconds}

    def measure(case: str, who: str) -> Figures:
        run.server.flush()
        return asyncio.run(_while_away(who, Setting(run.server.url, WAITING), cases[case]))

    return compare(run.fewer(0.6), "busy", dict.fromkeys(cases, STARTERS), measure)


def _busy_case(seconds: float) -> str:
    return (
        f"{seconds * 1_000:g} ms of other work in every turn"
        if seconds == EACH_TURN
        else away(seconds)
    )


def _tables_of_busy(records: Records) -> list[Table]:
    columns = [Column(case, case, "share_lost") for case in map(_busy_case, (*AWAY, EACH_TURN))]
    note = (
        f"{WAITING} decisions are under way when a handler blocks the event loop; Redis answers in "
        "under a millisecond. In the last column other tasks take 60 ms of every turn of the loop."
    )
    return [grid(records, "busy", "Decisions that are lost", columns, note)]


DISTANCE: Final = Benchmark("distance", _measure_distance, _tables_of_distance)
BUSY: Final = Benchmark("busy", _measure_busy, _tables_of_busy)

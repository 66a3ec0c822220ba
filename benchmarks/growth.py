"""Growth: what many users cost, in time and in memory."""

from __future__ import annotations

import asyncio
import gc
import random
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import cycle, islice
from typing import Final

from benchmarks import ours, peers
from benchmarks.algorithms import ALGORITHMS
from benchmarks.contestant import AMOUNT, Contestant, Entry, Setting
from benchmarks.measure import Figures, check, drive
from benchmarks.race import IN_MEMORY, ON_REDIS, Run, race, reason
from benchmarks.records import Absence, Record, Records
from benchmarks.tables import Table, number

NAME: Final = "growth"
BYTES: Final = "bytes"
USERS: Final = (100, 1_000, 10_000, 100_000, 1_000_000)
TIMES: Final = 3
# For the bytes: so many users, each of whom has sent so many messages, as in "5/10s".
CROWD: Final = 2_000
MESSAGES: Final = 5

GROWING: Final[dict[str, tuple[Entry, str, int]]] = {
    **{f"{ours.NAME}, Redis, {a}": (ours.OnRedis, a, 100) for a in ALGORITHMS},
    **{f"{ours.NAME}, memory, {a}": (ours.InMemory, a, 1) for a in ALGORITHMS},
    "limits, Redis, fixed window": (peers.LimitsOnRedis, "fixed window", 100),
    "limits, memory, fixed window": (peers.LimitsInMemory, "fixed window", 1),
}
# Where the next step would take a minute and more.
PATIENCE: Final = {
    "limits, Redis, fixed window": 10_000,
    "limits, memory, fixed window": 100_000,
    f"{ours.NAME}, memory, sliding window": 100_000,
    f"{ours.NAME}, memory, token bucket": 100_000,
}


def measure(run: Run) -> Iterator[Record | Absence]:
    most = 1_000 if run.quick else max(USERS)
    for who in GROWING:
        for users in USERS:
            if users > min(most, PATIENCE.get(who, most)):
                continue
            run.tell(f"{NAME}: {who}, {users:,} users")
            try:
                found = asyncio.run(_grow(run, who, users))
            except Exception as error:
                yield Absence(NAME, who, reason(error))
            else:
                yield from found
    yield from _bytes(run)


async def _grow(run: Run, who: str, users: int) -> list[Record]:
    """So many users come once; then, measured, everybody in turn as far as time permits."""
    entry, algorithm, concurrency = GROWING[who]
    setting = Setting(run.server.url, concurrency, algorithm, users=users + 10)
    found: list[Record] = []
    async with _ready(run, entry, setting) as contestant:
        empty = run.server.memory()
        await drive(contestant.hit, range(users), concurrency, 600)
        filled = run.server.memory()
        order = random.Random(users).sample(range(users), users)
        for i in range(TIMES):
            gc.collect()
            # Nobody comes more than 16 times in all, so nobody is refused.
            visits = islice(cycle(order), 5 * users)
            done = await drive(
                contestant.hit, visits, concurrency, run.seconds, turn=concurrency == 1
            )
            check(done.agreed, done.calls)
            figures = done.figures() | {"redis_bytes": (filled - empty) / users}
            figures["us"] = 1e6 / figures["rate"]
            found.append(Record(NAME, str(users), who, i, figures))
        check(sum([await contestant.hit(-1) for _ in range(AMOUNT + 5)]), AMOUNT)
    return found


def _bytes(run: Run) -> Iterator[Record | Absence]:
    crowd = CROWD // 10 if run.quick else CROWD

    def weigh(case: str, who: str) -> Figures:
        storage, algorithm = case.split(", ")
        if storage == "Redis":
            return _weigh_server(run, ON_REDIS[who], algorithm, crowd)
        return asyncio.run(_weigh_process(run, IN_MEMORY[who], algorithm, crowd))

    starters = {"Redis": [who for who in ON_REDIS if who != "bare INCR"], "memory": [*IN_MEMORY]}
    cases = {f"{s}, {a}": starters[s] for s in ("Redis", "memory") for a in ALGORITHMS}
    # Those who have no such algorithm are no news here.
    for record in race(run, BYTES, cases, weigh, rounds=1):
        if isinstance(record, Record):
            yield record


def _weigh_server(run: Run, entry: Entry, algorithm: str, crowd: int) -> Figures:
    async def fill() -> None:
        async with _ready(run, entry, Setting(run.server.url, 10, algorithm)) as contestant:
            visits = islice(cycle(range(crowd)), crowd * MESSAGES)
            await drive(contestant.hit, visits, 10, 600)

    run.server.flush()
    run.server.wait_until_alone()
    empty = run.server.memory()
    asyncio.run(fill())
    run.server.wait_until_alone()
    return {
        "used": (run.server.memory() - empty) / crowd,
        "usage": run.server.key_bytes() * run.server.keys() / crowd,
    }


async def _weigh_process(run: Run, entry: Entry, algorithm: str, crowd: int) -> Figures:
    async with _ready(run, entry, Setting(run.server.url, 1, algorithm)) as contestant:
        await contestant.hit(-1)
        gc.collect()
        tracemalloc.start()
        try:
            for user in islice(cycle(range(crowd)), crowd * MESSAGES):
                await contestant.hit(user)
            gc.collect()
            return {"process": tracemalloc.get_traced_memory()[0] / crowd}
        finally:
            tracemalloc.stop()


@asynccontextmanager
async def _ready(run: Run, entry: Entry, setting: Setting) -> AsyncIterator[Contestant]:
    contestant = entry()
    await contestant.setup(setting)
    try:
        await drive(contestant.hit, [-2] * setting.concurrency, setting.concurrency, 1)
        run.server.flush()
        yield contestant
    finally:
        await contestant.close()


def tables(records: Records) -> list[Table]:
    steps = [n for n in USERS if records.who(NAME, str(n))]
    times = Table(
        "Microseconds for a decision, by the number of users",
        ("", *(f"{n:,} users" for n in steps)),
        [
            (who, *(number(records.spread(NAME, str(n), who, "us")) for n in steps))
            for who in records.who(NAME)
        ],
        "On Redis: the time in which 100 at a time get through, for each of them. In memory: one "
        "after another, and the loop turns after each.",
    )
    bytes_each = Table(
        "Bytes in Redis for a user who came once, by the number of users",
        ("", *(f"{n:,} users" for n in steps)),
        [
            (who, *(number(records.spread(NAME, str(n), who, "redis_bytes")) for n in steps))
            for who in records.who(NAME)
            if "Redis" in who
        ],
        "The growth of `used_memory`, which comes in steps: Redis doubles its tables.",
    )
    return [times, bytes_each, *_weights(records)]


def _weights(records: Records) -> list[Table]:
    def rows(storage: str, *figures: str) -> list[tuple[str, ...]]:
        return [
            (
                who,
                *(
                    number(records.spread(BYTES, f"{storage}, {algorithm}", who, figure))
                    for algorithm in ALGORITHMS
                    for figure in figures
                ),
            )
            for who in dict.fromkeys(
                who for a in ALGORITHMS for who in records.who(BYTES, f"{storage}, {a}")
            )
        ]

    titles = [f"{a}: {what}" for a in ALGORITHMS for what in ("`used_memory`", "`MEMORY USAGE`")]
    about = f"Each of {CROWD:,} users came {MESSAGES} times (with `--quick`, of {CROWD // 10:,})."
    return [
        Table("Bytes in Redis for a user", ("", *titles), rows("Redis", "used", "usage"), about),
        Table(
            "Bytes in the process for a user",
            ("", *ALGORITHMS),
            rows("memory", "process"),
            f"By `tracemalloc`. {about}",
        ),
    ]

"""Observers: what it costs to be watched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final

from prometheus_client import CollectorRegistry

from benchmarks.contestant import Contestant, Entry, Setting, client
from benchmarks.ours import PolicyAnsweredError, rules
from benchmarks.race import Run, decisions
from benchmarks.records import Absence, Record, Records, Spread
from benchmarks.tables import Table, digits, number, ranged
from bot_ratelimit import Limiter, LogObserver, MemoryStorage, RedisStorage, Subject
from bot_ratelimit.metrics import PrometheusMetrics

NAME: Final = "observers"
BARE: Final = "no observer"
MOST_US: Final = 3.0
# 20 and more visits of a user are refused, so this is what the log observer has to do, too.
IN_MEMORY: Final = "memory, 1 at a time"
ON_REDIS: Final = "Redis, 100 at a time"


class _Watched(Contestant):
    def __init__(self, on_redis: bool) -> None:
        self._on_redis = on_redis

    def _arguments(self) -> dict[str, Any]:
        return {}

    async def setup(self, setting: Setting) -> None:
        storage: MemoryStorage | RedisStorage
        if self._on_redis:
            storage = RedisStorage(client(setting), close_client=True)
        else:
            storage = MemoryStorage(setting.users + 1)
        self._rules = rules(setting)
        self._limiter = Limiter(storage, key_prefix="bench", **self._arguments())

    async def hit(self, user: int) -> bool:
        decision = await self._limiter.hit(self._rules, Subject(user=user))
        if decision.source == "policy":
            raise PolicyAnsweredError("no decision within the deadline of 0.25 s")
        return decision.allowed

    async def close(self) -> None:
        await self._limiter.close()


class Bare(_Watched):
    name: ClassVar[str] = BARE


class Logged(_Watched):
    name: ClassVar[str] = "LogObserver"

    def _arguments(self) -> dict[str, Any]:
        return {"observer": LogObserver()}


class Measured(_Watched):
    name: ClassVar[str] = "PrometheusMetrics"

    def _arguments(self) -> dict[str, Any]:
        return {"observer": PrometheusMetrics(CollectorRegistry())}


class Counted(_Watched):
    name: ClassVar[str] = "statistics"

    def _arguments(self) -> dict[str, Any]:
        return {"statistics": True}


class All(_Watched):
    name: ClassVar[str] = "all three"

    def _arguments(self) -> dict[str, Any]:
        metrics = PrometheusMetrics(CollectorRegistry())
        return {"observer": [LogObserver(), metrics], "statistics": True}


WATCHED: Final = (Bare, Logged, Measured, Counted, All)


def measure(run: Run) -> Iterator[Record | Absence]:
    settings: dict[str, tuple[Setting, Mapping[str, Entry]]] = {
        IN_MEMORY: (Setting(run.server.url, 1), _entries(False)),
        ON_REDIS: (Setting(run.server.url, 100), _entries(True)),
    }
    return decisions(run, NAME, settings)


def tables(records: Records) -> list[Table]:
    return [
        Table(
            "Decisions a second, watched and not",
            (
                "",
                IN_MEMORY,
                f"of {BARE}'s",
                "µs added",
                ON_REDIS,
                f"of {BARE}'s",
                "µs of CPU added",
            ),
            [
                (
                    who,
                    number(records.spread(NAME, IN_MEMORY, who, "rate")),
                    _share(records, IN_MEMORY, who),
                    _added(records, IN_MEMORY, who),
                    number(records.spread(NAME, ON_REDIS, who, "rate")),
                    _share(records, ON_REDIS, who),
                    _added(records, ON_REDIS, who),
                )
                for who in records.who(NAME, IN_MEMORY)
            ],
            "Added: the difference of the medians of the CPU that a decision takes in the bot.",
        )
    ]


def added_by_metrics(records: Records) -> float | None:
    """Microseconds of CPU that PrometheusMetrics adds to a decision in memory."""
    return _difference(records, IN_MEMORY, Measured.name)


def _entries(on_redis: bool) -> dict[str, Entry]:
    def entry(watched: type[_Watched]) -> Entry:
        return lambda: watched(on_redis)

    return {watched.name: entry(watched) for watched in WATCHED}


def _share(records: Records, case: str, who: str) -> str:
    return "" if who == BARE else ranged(records.ratio(NAME, case, who, BARE))


def _added(records: Records, case: str, who: str) -> str:
    found = None if who == BARE else _difference(records, case, who)
    return "" if found is None else digits(found)


def _difference(records: Records, case: str, who: str) -> float | None:
    found: list[Spread | None] = [
        records.spread(NAME, case, each, "cpu_us") for each in (who, BARE)
    ]
    mine, bare = found
    return None if mine is None or bare is None else mine.median - bare.median

"""Observers: the cost of observing decisions."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from prometheus_client import CollectorRegistry

from benchmarks.candidate import Candidate, Entry, Setting, client
from benchmarks.comparison import Benchmark, Measurements, Run
from benchmarks.decisions import in_process
from benchmarks.ours import PolicyAnsweredError, rules
from benchmarks.records import Records
from benchmarks.tables import Column, Table, grid
from bot_ratelimit import Limiter, LogObserver, MemoryStorage, RedisStorage, Subject
from bot_ratelimit.metrics import PrometheusMetrics

BARE: Final = "no observer"
MOST_US: Final = 3.0
# From the 21st hit on a user is refused, so the log observer has work to do.
ALONE: Final = "memory, 1 at a time"
TOGETHER: Final = "Redis, 100 at a time"


class _Watched(Candidate):
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


def _entries(on_redis: bool) -> dict[str, Entry]:
    def entry(watched: type[_Watched]) -> Entry:
        return lambda: watched(on_redis)

    return {watched.name: entry(watched) for watched in WATCHED}


def _measure(run: Run) -> Measurements:
    cases = {
        ALONE: (Setting(run.server.url, 1), _entries(False)),
        TOGETHER: (Setting(run.server.url, 100), _entries(True)),
    }
    return in_process(run if run.quick else run.fewer(2, 0.4), "observers", cases)


def _tables(records: Records) -> list[Table]:
    columns = [
        Column(f"{title}, {case}", case, figure)
        for case in (ALONE, TOGETHER)
        for title, figure in (("decisions a second", "rate"), ("µs of CPU", "cpu_us"))
    ]
    note = "What an observer costs is the difference of the CPU to the row without one."
    return [grid(records, "observers", "Decisions, watched and not", columns, note)]


OBSERVERS: Final = Benchmark("observers", _measure, _tables)

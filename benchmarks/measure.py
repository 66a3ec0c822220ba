"""How a figure comes about: so many tasks, each asking again as soon as it has its answer."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

from benchmarks.candidate import Entry, Setting, allowance, visitors
from benchmarks.server import Server

Item = TypeVar("Item")
Figures = dict[str, float]

WARM_UP: Final = 0.05
# By how much the ids of those are shifted who come while a candidate warms up.
EARLIER: Final = 1_000_000_000


class MiscountError(Exception):
    """A candidate did not limit as it should: what it costs says nothing."""


@dataclass(slots=True)
class Drive:
    """What a number of calls came to."""

    calls: int
    agreed: int
    """How many returned True."""
    seconds: float
    cpu: float
    """Seconds of CPU in this process."""
    latencies: list[float]
    """Seconds, ascending."""

    def figures(self) -> Figures:
        """Rate a second; microseconds per call."""
        at = len(self.latencies) - 1
        return {
            "calls": self.calls,
            "rate": self.calls / self.seconds,
            "p50_us": self.latencies[at // 2] * 1e6,
            "p99_us": self.latencies[at * 99 // 100] * 1e6,
            "cpu_us": self.cpu / self.calls * 1e6,
        }


async def drive(
    act: Callable[[Item], Awaitable[object]],
    items: Iterable[Item],
    concurrency: int,
    seconds: float,
    *,
    turn: bool = False,
) -> Drive:
    """Let `concurrency` tasks act on the items until the time or the items are up.

    Args:
        turn: Let the event loop turn after each call. What never waits otherwise keeps it, which
            in a bot it does not: there, the loop turns at least once for each update.
    """
    clock, latencies, agreed, shared = time.perf_counter, list[float](), 0, iter(items)
    record = latencies.append

    async def work() -> None:
        nonlocal agreed
        for item in shared:
            began = clock()
            result = await act(item)
            ended = clock()
            record(ended - began)
            if result is True:
                agreed += 1
            if ended >= until:
                break
            if turn:
                await asyncio.sleep(0)

    cpu = time.process_time()
    began = clock()
    until = began + seconds
    await asyncio.gather(*(work() for _ in range(concurrency)))
    took, cpu = clock() - began, time.process_time() - cpu
    return Drive(len(latencies), agreed, took, cpu, sorted(latencies))


async def decide(
    entry: Entry, setting: Setting, seconds: float, server: Server, *, turn: bool = False
) -> Figures:
    """Measure one candidate once, and make sure that it limited as it should.

    Raises:
        UnableError: It cannot do this.
        MiscountError: It allowed more or fewer hits than it should.
    """
    candidate = entry()
    await candidate.setup(setting)
    try:
        await drive(candidate.hit, visitors(EARLIER), setting.concurrency, WARM_UP)
        server.flush()
        gc.collect()
        before = server.cpu()
        done = await drive(candidate.hit, visitors(), setting.concurrency, seconds, turn=turn)
        served, commands, reads = server.cpu() - before, server.commands(), server.reads()
    finally:
        await candidate.close()
    check(done.agreed, allowance(done.calls))
    figures = done.figures()
    if commands:
        figures["server_us"] = served / done.calls * 1e6
        figures["per_command"] = done.calls / commands
        figures["per_read"] = commands / reads
        figures["bytes"] = server.key_bytes()
    return figures


def check(allowed: int, due: int) -> None:
    if allowed != due:
        raise MiscountError(f"it allowed {allowed} hits where {due} were due")

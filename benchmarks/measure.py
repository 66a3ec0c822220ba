"""Measures: a number of tasks, each of which asks again as soon as it has its answer."""

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
# The offset of the ids of users that hit during the warm-up.
EARLIER: Final = 1_000_000_000


class MiscountError(Exception):
    """A candidate did not limit correctly, so its costs mean nothing."""


@dataclass(slots=True)
class Drive:
    """The results of a number of calls."""

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
    """Let `concurrency` tasks process the items until the time or the items end.

    Args:
        turn: Let the event loop run once after each call. A call that never waits would otherwise
            block it; in a bot the loop runs at least once per update.
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
    """Measure one candidate once, and check that it limits correctly.

    Raises:
        UnableError: It does not support the setting.
        MiscountError: It allowed too many or too few hits.
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

"""Storages: the same limiter with its counts in memory, in Redis and in Memcached."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Final

from benchmarks.candidate import Entry, Setting, client
from benchmarks.comparison import Benchmark, Measurements, Run
from benchmarks.decisions import in_process
from benchmarks.ours import Ours
from benchmarks.records import Records
from benchmarks.tables import Column, Table, grid
from bot_ratelimit import LimitsStorage, MemoryStorage, RedisStorage
from bot_ratelimit.storage.base import Storage
from tests.servers import free_port

CASES: Final = {n: f"{n} at a time" for n in (1, 100)}

_numbers: Final = count()


class _Kept(Ours):
    """A limiter whose counts are kept in one of the storages."""

    def __init__(self, make: Callable[[Setting], Storage]) -> None:
        self._make = make

    async def setup(self, setting: Setting) -> None:
        # Counts in Memcached are not flushed between the rounds.
        self._start(setting, self._make(setting), f"bench{next(_numbers)}", timeout=5)


@contextmanager
def _memcached() -> Iterator[str | None]:
    """The URL of a Memcached of its own; None where it is not installed."""
    binary = shutil.which("memcached")
    if binary is None:
        yield None
        return
    port = free_port()
    process = subprocess.Popen([binary, "-u", "nobody", "-l", "127.0.0.1", "-p", str(port)])
    time.sleep(0.3)
    try:
        yield f"memcached://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _measure(run: Run) -> Measurements:
    with _memcached() as url:
        kinds: dict[str, Entry] = {
            "memory": lambda: _Kept(lambda setting: MemoryStorage(setting.users + 1)),
            "Redis": lambda: _Kept(lambda s: RedisStorage(client(s), close_client=True)),
        }
        if url is not None:
            kinds["Memcached"] = lambda: _Kept(lambda _: LimitsStorage(url))
        cases = {case: (Setting(run.server.url, n), kinds) for n, case in CASES.items()}
        yield from in_process(run, "storages", cases)


def _tables(records: Records) -> list[Table]:
    columns = [
        Column(f"{title}, {case}", case, figure)
        for title, figure in (("decisions a second", "rate"), ("µs of CPU in the bot", "cpu_us"))
        for case in CASES.values()
    ]
    return [grid(records, "storages", "One limiter on each storage", columns)]


STORAGES: Final = Benchmark("storages", _measure, _tables)

"""Child processes that measure: with other libraries in them, or several at once."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from typing import Final

from benchmarks.contestant import Setting, visitors
from benchmarks.measure import EARLIER, WARM_UP, drive
from benchmarks.race import ON_REDIS

HIREDIS: Final = "hiredis"
UVLOOP: Final = "uvloop"


class Child:
    """A process that waits for work: `prepare` it, let it `go`, and take its `result`.

    Args:
        having: Which of hiredis and uvloop it uses.
    """

    def __init__(self, *having: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.child", *having],
            env=os.environ | ({"BENCHMARK_WITH_HIREDIS": "1"} if HIREDIS in having else {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def prepare(self, who: str, url: str, concurrency: int, seconds: float) -> None:
        """Set the contestant up and warm it up; returns when it waits for `go`."""
        self._send([who, url, concurrency, seconds])
        self._receive()

    def go(self) -> None:
        self._send(None)

    def result(self) -> dict[str, float]:
        """The figures of the drive, and how many of its calls were `allowed`."""
        figures: dict[str, float] = json.loads(self._receive())
        return figures

    def close(self) -> None:
        self._process.communicate(timeout=10)

    def _send(self, value: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(value) + "\n")
        self._process.stdin.flush()

    def _receive(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a child process ended; what it wrote is above")
        return line


def main(having: list[str]) -> None:
    runner = asyncio.Runner()
    if UVLOOP in having:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)

    async def serve(who: str, url: str, concurrency: int, seconds: float) -> dict[str, float]:
        contestant = ON_REDIS[who]()
        await contestant.setup(Setting(url, concurrency))
        try:
            await drive(contestant.hit, visitors(EARLIER), concurrency, WARM_UP)
            gc.collect()
            print("ready", flush=True)
            sys.stdin.readline()
            done = await drive(contestant.hit, visitors(), concurrency, seconds)
        finally:
            await contestant.close()
        return done.figures() | {"allowed": done.agreed}

    gc.freeze()
    with runner:
        for line in sys.stdin:
            print(json.dumps(runner.run(serve(*json.loads(line)))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Child processes that measure: with other libraries in them, or several at once."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, Final

from benchmarks.contestant import Setting, UnableError, visitors
from benchmarks.measure import EARLIER, WARM_UP, Figures, drive
from benchmarks.race import ON_REDIS, reason

HIREDIS: Final = "hiredis"
UVLOOP: Final = "uvloop"


class Child:
    """A process that waits for jobs; a message in either direction is a line of JSON.

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

    def send(self, message: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def receive(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a child process ended; what it wrote is above")
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate(timeout=10)


def together(
    team: Sequence[Child], who: str, setting: Setting, seconds: float, begin: Callable[[], None]
) -> list[Figures]:
    """What each of the team measures when all of them start at once.

    Args:
        begin: Called when everybody is ready and nobody has started.

    Returns:
        The figures of each one's drive, and how many of its calls were `allowed`.
    """
    for child in team:
        child.send([who, setting, seconds])
    replies = [child.receive() for child in team]
    ready = [child for child, reply in zip(team, replies, strict=True) if "error" not in reply]
    begin()
    for child in ready:
        child.send("go")
    results = [child.receive() for child in ready]
    for reply in (*replies, *results):
        if "error" in reply:
            raise UnableError(reply["error"])
    return results


async def _measured(who: str, setting: Setting, seconds: float) -> Figures:
    contestant = ON_REDIS[who]()
    await contestant.setup(setting)
    try:
        await drive(contestant.hit, visitors(EARLIER), setting.concurrency, WARM_UP)
        gc.collect()
        _answer({"ready": True})
        sys.stdin.readline()
        done = await drive(contestant.hit, visitors(), setting.concurrency, seconds)
    finally:
        await contestant.close()
    return done.figures() | {"allowed": done.agreed}


def _answer(message: object) -> None:
    print(json.dumps(message), flush=True)


def main(having: list[str]) -> None:
    missing = [library for library in having if find_spec(library) is None]
    runner = asyncio.Runner()
    if UVLOOP in having and not missing:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    gc.freeze()
    with runner:
        for line in sys.stdin:
            who, setting, seconds = json.loads(line)
            if missing:
                _answer({"error": f"{missing[0]} is not installed"})
                continue
            try:
                _answer(runner.run(_measured(who, Setting(*setting), seconds)))
            except Exception as error:
                _answer({"error": reason(error)})


if __name__ == "__main__":
    main(sys.argv[1:])

"""Traffic: users who never stop writing, in calm times, floods, and an outage of Redis."""

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Final

from example_bot.demo.backend import Embedded
from example_bot.demo.botapi import BotApi
from example_bot.demo.updates import Json, album, callback, message

PEOPLE: Final = range(1_000, 1_060)
FLOODERS: Final = range(9_000, 9_030)
GROUP: Final = -100_200

_AT_ONCE: Final = 3  # users who flood at the same time
_UNDER_WAY: Final = 200  # deliveries at the same time


@dataclass(frozen=True, slots=True)
class Scene:
    """What the users do for some seconds."""

    sentence: str
    seconds: float
    people: float  # messages a second of all ordinary users together
    flood: float = 0.0  # messages a second of each flooder
    outage: bool = False


# The first minute shows all of these scenes.
SCENES: Final = (
    Scene("Calm: users write now and then.", 6, people=6),
    Scene("A flood: three users send ten messages a second, and get banned.", 10, 6, 10),
    Scene("Calm. The bans from the flood are still in force.", 8, people=6),
    Scene("Redis is down: the bot answers everybody, and health shows it.", 6, 6, outage=True),
    Scene("Redis is back: limits are enforced again, and counts are kept.", 10, people=6),
    Scene("Rush hour: many users write at once, some of them too often.", 15, people=25),
    Scene("Night: hardly anybody writes.", 15, people=2),
)  # fmt: skip


class Traffic:
    """The crowd; it tells what begins."""

    def __init__(self, api: BotApi, backend: Embedded, tell: Callable[[str], None]) -> None:
        self._api, self._backend, self._tell = api, backend, tell
        self._random = random.Random(1)  # the same traffic every time
        self._tasks = asyncio.TaskGroup()
        self._deliveries = asyncio.Semaphore(_UNDER_WAY)
        self._flooders = cycle(FLOODERS)

    async def run(self) -> None:
        """Write until cancelled."""
        async with self._tasks:
            for scene in cycle(SCENES):
                self._tell(scene.sentence)
                if scene.outage:
                    self._backend.cut()
                try:
                    await self._play(scene)
                finally:
                    self._backend.repair()
                # The stand-in keeps all requests, for tests; here they would fill the memory.
                for kept in (self._api.calls, self._api.refused, self._api.spinning):
                    kept.clear()

    async def _play(self, scene: Scene) -> None:
        streams = [self._write(self._anybody(), scene.people)]
        if scene.flood:
            flooders = [next(self._flooders) for _ in range(_AT_ONCE)]
            streams += [self._write(_flood(each), scene.flood) for each in flooders]
        writing = [self._tasks.create_task(stream) for stream in streams]
        await asyncio.sleep(scene.seconds)
        for task in writing:
            task.cancel()

    async def _write(self, updates: Iterator[Json], per_second: float) -> None:
        while True:
            await asyncio.sleep(self._random.expovariate(per_second))
            await self._deliveries.acquire()
            self._tasks.create_task(self._deliver(next(updates)))

    async def _deliver(self, update: Json) -> None:
        try:
            await self._api.deliver(update)
        finally:
            self._deliveries.release()

    def _anybody(self) -> Iterator[Json]:
        """What ordinary users do; some of them write more often than others."""
        shares = [1 / (5 + number) for number in range(len(PEOPLE))]
        kinds = ("ping", "button", "group", "album", "report")
        while True:
            (person,) = self._random.choices(PEOPLE, shares)
            (kind,) = self._random.choices(kinds, (65, 15, 12, 5, 3))
            match kind:
                case "button":
                    yield callback(person, "ping")
                case "group":
                    yield message(person, "/ping", group=GROUP)
                case "album":
                    yield from album(person, 3)
                case _:
                    yield message(person, f"/{kind}")


def _flood(person: int) -> Iterator[Json]:
    while True:
        yield message(person, "/ping")

"""Traffic: users who never stop writing, in calm times, floods, and an outage of Redis."""

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Final

from example_bot.demo.backend import Backend
from example_bot.demo.botapi import BotApi
from example_bot.demo.updates import Json, album, callback, message

PEOPLE: Final = range(1_000, 1_060)
FLOODERS: Final = range(9_000, 9_030)
GROUP: Final = -100_200

_AT_ONCE: Final = 3
"""How many users flood at the same time."""
_UNDER_WAY: Final = 200
"""Deliveries at the same time; on a slow machine, further messages wait."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What the users do for some seconds."""

    sentence: str
    seconds: float
    people: float
    """Messages a second of all ordinary users together."""
    flood: float = 0.0
    """Messages a second of each flooder."""
    outage: bool = False
    """Whether Redis is down in this scene."""


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
    """The crowd.

    Args:
        api: Delivers what it writes.
        backend: The Redis that goes away.
        tell: Called with what begins.
    """

    def __init__(self, api: BotApi, backend: Backend, tell: Callable[[str], None]) -> None:
        self._api, self._backend, self._tell = api, backend, tell
        self._random = random.Random(1)  # the same traffic every time
        self._tasks = asyncio.TaskGroup()
        self._under_way = 0
        self._floods = 0

    async def run(self) -> None:
        """Write until cancelled."""
        async with self._tasks:
            for scene in cycle(SCENES):
                self._tell(scene.sentence)
                if scene.outage:
                    await self._backend.cut()
                try:
                    await self._play(scene)
                finally:
                    if scene.outage:
                        await self._backend.repair()
                # The fake Bot API keeps all requests, for tests; here they would fill the memory.
                for kept in (self._api.calls, self._api.refused, self._api.spinning):
                    kept.clear()

    async def _play(self, scene: Scene) -> None:
        streams = [self._write(self._anybody(), scene.people)]
        if scene.flood:
            self._floods += 1
            streams += [self._write(_flood(each), scene.flood) for each in self._flooders()]
        writing = [self._tasks.create_task(stream) for stream in streams]
        await asyncio.sleep(scene.seconds)
        for task in writing:
            task.cancel()

    async def _write(self, updates: Iterator[Json], per_second: float) -> None:
        while True:
            await asyncio.sleep(self._random.expovariate(per_second))
            if self._under_way < _UNDER_WAY:
                self._tasks.create_task(self._deliver(next(updates)))

    async def _deliver(self, update: Json) -> None:
        self._under_way += 1
        try:
            await self._api.deliver(update)
        finally:
            self._under_way -= 1

    def _flooders(self) -> list[int]:
        """The next flooders in turn; after the last ones, the first ones again."""
        first = self._floods * _AT_ONCE
        return [FLOODERS[(first + number) % len(FLOODERS)] for number in range(_AT_ONCE)]

    def _anybody(self) -> Iterator[Json]:
        """What ordinary users do; some of them write more often than others."""
        shares = [1 / (5 + number) for number in range(len(PEOPLE))]
        while True:
            (person,) = self._random.choices(PEOPLE, shares)
            yield from self._something(person)

    def _something(self, person: int) -> list[Json]:
        kind = self._random.random()
        if kind < 0.6:
            return [message(person, "/ping")]
        if kind < 0.75:
            return [callback(person, "ping")]
        if kind < 0.85:
            return [message(person, "/ping", group=GROUP)]
        if kind < 0.93:
            return [message(person, "/ask why")]
        return album(person, 3) if kind < 0.97 else [message(person, "/report")]


def _flood(person: int) -> Iterator[Json]:
    while True:
        yield message(person, "/ping")

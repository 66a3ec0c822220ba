"""The three acts: what is done, and what ought to come of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from redis.asyncio import Redis

from example_bot.demo.backend import Backend
from example_bot.demo.botapi import BotApi
from example_bot.demo.crowd import FLOODERS, Person, crowd, is_answer, write
from example_bot.demo.display import Display
from example_bot.demo.instances import instances
from example_bot.demo.tape import Tape
from example_bot.demo.updates import message
from example_bot.demo.verdict import Claim, Findings, Outcome, Scene

INSTANCES = 3
LIMIT = 5
# A minute is far more than an act takes: nobody's window ends during one, so that the counts
# are the same on a fast machine and on a slow one.
WINDOW = 60.0
RATE_LIMIT = f"{LIMIT}/minute"
# Seconds after the return of Redis within which limits must hold again.
RECOVERY = 8.0

# 40 people who stay within the limit, some of them just so, and 3 who do not.
CROWD = crowd(users=[i % LIMIT + 1 for i in range(40)], flooders=[60] * 3)
# They write three times in act three; over all of it ordinary people stay within the limit.
SMALL_CROWD = crowd(users=[i % 2 + 1 for i in range(40)], flooders=[20] * 3)


@dataclass(frozen=True, slots=True)
class Play:
    """One performance.

    Args:
        display: Where it is shown.
        backend: The Redis that the instances share.
        prefix: What the keys of this performance begin with.
        tape: What the package logs.
    """

    display: Display
    backend: Backend
    prefix: str
    tape: Tape
    findings: Findings = field(default_factory=Findings)

    async def act_one(self) -> None:
        """Every instance counts on its own, and a flooder finds three counters to fill."""
        self.display.act(
            "Act one: no Redis, every instance counts in its own memory.",
            f"A flooder meets {INSTANCES} counters instead of one: {INSTANCES} times the limit "
            f"gets through, {LIMIT * INSTANCES} messages.",
        )
        async with self._bot("one", None) as api:
            await self._scene(
                api, "1 own memory", CROWD, 3.0, lambda p: min(p.messages, LIMIT * INSTANCES)
            )

    async def act_two(self) -> None:
        """The same crowd, one Redis for all instances."""
        self.display.act(
            "Act two: the same crowd, and the instances share a Redis.",
            f"Whichever instance a message reaches, a flooder gets exactly {LIMIT} through.",
        )
        async with self._bot("two", self.backend.client) as api:
            outcomes = await self._scene(
                api, "2 shared Redis", CROWD, 3.0, lambda p: min(p.messages, LIMIT)
            )
        self._claim(
            "every flooder was told once to slow down, not once for each refused message",
            all(outcome.told == (outcome.group == FLOODERS) for outcome in outcomes),
        )

    async def act_three(self) -> None:
        """Redis goes away in the middle, and comes back."""
        self.display.act(
            "Act three: Redis goes away in the middle, and comes back.",
            "While nobody can count, the bot answers everybody rather than nobody. Once Redis is "
            "back, limits hold again, and what it had counted before still counts: a flooder "
            f"whose {LIMIT} were used up gets nothing more through in this minute.",
        )
        async with self._bot("three", self.backend.client) as api:
            await self._scene(api, "3 Redis up", SMALL_CROWD, 1.5, lambda p: min(p.messages, LIMIT))
            await self.backend.cut()
            self.display.say("  Redis is gone.")
            await self._scene(api, "3 Redis gone", SMALL_CROWD, 1.5, lambda p: p.messages)
            self._claim("the outage was logged", self.tape.has("Redis rate limit check failed"))
            await self.backend.mend()
            self.display.say("  Redis is back. An instance notices when it tries it again.")
            await self._recovery(api)
            await self._scene(api, "3 Redis back", SMALL_CROWD, 1.5, _left_over)

    @asynccontextmanager
    async def _bot(self, act: str, new_client: Callable[[], Redis] | None) -> AsyncIterator[BotApi]:
        """The instances of the bot and their Telegram, new for each act."""
        began = time.monotonic()
        prefix = f"{self.prefix}:{act}"
        async with BotApi() as api, instances(api, INSTANCES, RATE_LIMIT, prefix, new_client):
            self.display.log(self.tape.take())
            # The first update of an instance builds what the others find ready; the latencies
            # are not to tell of that.
            for number in range(INSTANCES):
                await api.deliver(message(number + 1, "/ping"))
            yield api
        if (took := time.monotonic() - began) >= WINDOW:
            self._claim(
                f"act {act} was over before a window of {WINDOW:.0f} s was; it took {took:.0f} s, "
                "this machine is too slow or too busy for the demo",
                False,
            )

    async def _scene(
        self,
        api: BotApi,
        title: str,
        people: list[Person],
        seconds: float,
        expected: Callable[[Person], int],
    ) -> list[Outcome]:
        total = sum(person.messages for person in people)
        with self.display.progress("messages delivered", total) as advance:
            outcomes = await write(api, people, seconds, expected, advance)
        self.display.log(self.tape.take())
        self.findings.scenes.append(Scene(title, outcomes))
        return outcomes

    async def _recovery(self, api: BotApi) -> None:
        """Let a flooder go on until every instance in turn has refused."""
        flooder = next(person.id for person in SMALL_CROWD if person.group == FLOODERS)
        began = time.monotonic()
        took, refused = 0.0, 0
        while refused < INSTANCES and took < RECOVERY:
            seen = len(api.calls)
            delivery = await api.deliver(message(flooder, "/ping"))
            handled = any(is_answer(call) for call in api.calls[seen:])
            refused = 0 if handled or not delivery.ok else refused + 1
            took = time.monotonic() - began
            await asyncio.sleep(0.05)
        holds = refused >= INSTANCES
        seen_after = f" (after {took:.1f} s)" if holds else ""
        self._claim(
            f"limits held again within {RECOVERY:.0f} s of Redis' return{seen_after}", holds
        )

    def _claim(self, sentence: str, holds: bool) -> None:
        self.findings.claims.append(Claim(sentence, holds))


def _left_over(person: Person) -> int:
    """What the limit leaves to somebody who has written as much in the same window before."""
    return min(person.messages, max(0, LIMIT - person.messages))

"""Stage: where the acts are performed: bots, their Telegram and Redis, and who keeps the tally."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from redis.asyncio import Redis

from example_bot.demo.backend import Backend
from example_bot.demo.botapi import BotApi
from example_bot.demo.crowd import Part, play
from example_bot.demo.display import Display
from example_bot.demo.instances import instances
from example_bot.demo.tape import Tape
from example_bot.demo.updates import message
from example_bot.demo.verdict import Claim, Findings, Outcome, Scene

INSTANCES = 3
LIMIT = 5
RATE_LIMIT = f"{LIMIT}/minute"
# A minute is far more than an act takes: nobody's window ends during one, so that the counts
# are the same on a fast machine and on a slow one.
WINDOW = 60.0


@dataclass(frozen=True, slots=True)
class Stage:
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

    @asynccontextmanager
    async def bot(
        self, act: str, new_client: Callable[[], Redis] | None = None
    ) -> AsyncIterator[BotApi]:
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
            self.claim(
                f"act {act} was over before a window of {WINDOW:.0f} s was; it took {took:.0f} s, "
                "this machine is too slow or too busy for the demo",
                False,
            )

    async def scene(
        self,
        api: BotApi,
        title: str,
        parts: Sequence[Part],
        seconds: float,
        what: str = "messages",
    ) -> tuple[Outcome, ...]:
        """Let the crowd do something, and put what became of it into the findings."""
        total = sum(len(part.updates) for part in parts)
        with self.display.progress(f"{what} delivered", total) as advance:
            outcomes = tuple(await play(api, parts, seconds, advance))
        self.display.log(self.tape.take())
        self.findings.scenes.append(Scene(title, outcomes))
        return outcomes

    def claim(self, sentence: str, holds: bool) -> None:
        """Claim something beyond the counts of a scene."""
        self.findings.claims.append(Claim(sentence, holds))

"""DemoContext: what the scenarios share: the bots, their Telegram and Redis, and the results."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from redis.asyncio import Redis

from example_bot.demo.backend import Backend
from example_bot.demo.botapi import BotApi
from example_bot.demo.crowd import Activity, play
from example_bot.demo.display import Display
from example_bot.demo.instances import instances
from example_bot.demo.log_capture import LogCapture
from example_bot.demo.results import Check, Outcome, Results, Step
from example_bot.demo.updates import message

INSTANCES = 3
LIMIT = 5
RATE_LIMIT = f"{LIMIT}/minute"
# A minute is much longer than a scenario: no window ends during one, so the counts are the same on
# a fast and on a slow machine.
WINDOW = 60.0


@dataclass(frozen=True, slots=True)
class DemoContext:
    """One run of the demo.

    Args:
        display: Where it is shown.
        backend: The Redis that the instances share.
        prefix: The prefix of all keys of this run.
        logs: What the package logs.
    """

    display: Display
    backend: Backend
    prefix: str
    logs: LogCapture
    results: Results = field(default_factory=Results)

    @asynccontextmanager
    async def bot(
        self, name: str, new_client: Callable[[], Redis] | None = None
    ) -> AsyncIterator[BotApi]:
        """The instances of the bot and their Telegram, new for each scenario."""
        began = time.monotonic()
        prefix = f"{self.prefix}:{name}"
        async with BotApi() as api, instances(api, INSTANCES, RATE_LIMIT, prefix, new_client):
            self.display.log(self.logs.take())
            # The first update of an instance is slower because it builds what later updates reuse.
            # It must not distort the latencies.
            for number in range(INSTANCES):
                await api.deliver(message(number + 1, "/ping"))
            yield api
        if (took := time.monotonic() - began) >= WINDOW:
            self.check(
                f"scenario {name} was shorter than a window of {WINDOW:.0f} s; it took "
                f"{took:.0f} s, so this machine is too slow or too busy for the demo",
                False,
            )

    async def step(
        self,
        api: BotApi,
        title: str,
        activities: Sequence[Activity],
        seconds: float,
        what: str = "messages",
    ) -> tuple[Outcome, ...]:
        """Run the activities and add the outcomes to the results."""
        total = sum(len(activity.updates) for activity in activities)
        with self.display.progress(f"{what} delivered", total) as advance:
            outcomes = tuple(await play(api, activities, seconds, advance))
        self.display.log(self.logs.take())
        self.results.steps.append(Step(title, outcomes))
        return outcomes

    def check(self, sentence: str, holds: bool) -> None:
        """Record a check beyond the counts of a step."""
        self.results.checks.append(Check(sentence, holds))

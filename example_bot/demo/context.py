"""DemoContext: what the scenarios share: the bots, their Telegram and Redis, and the results."""

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from redis.asyncio import Redis

from example_bot.demo.backend import Embedded
from example_bot.demo.botapi import BotApi
from example_bot.demo.crowd import Activity, play
from example_bot.demo.display import Display
from example_bot.demo.instances import instances
from example_bot.demo.results import Outcome, Results, Step
from example_bot.demo.updates import message

INSTANCES = 3
LIMIT = 5
RATE_LIMIT = f"{LIMIT}/minute"
WINDOW = 60.0
"""Longer than a scenario: no window ends during one, so the counts are the same on all machines."""


class LogCapture(logging.Handler):
    """Keeps log records, so that the demo can show them between its own lines."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.records.append(record)


@dataclass(frozen=True, slots=True)
class DemoContext:
    """One run of the demo: where it is shown, its Redis, its log, and what happened."""

    display: Display
    backend: Embedded
    logs: LogCapture
    results: Results = field(default_factory=Results)

    @asynccontextmanager
    async def bot(
        self, prefix: str, new_client: Callable[[], Redis] | None = None
    ) -> AsyncIterator[BotApi]:
        """The instances of the bot and their Telegram, new for each scenario."""
        began = time.monotonic()
        async with BotApi() as api, instances(api, INSTANCES, RATE_LIMIT, prefix, new_client):
            self.display.log(self.logs.records)
            # The first update of an instance is slower because it builds what later updates reuse.
            # It must not distort the latencies.
            for number in range(INSTANCES):
                await api.deliver(message(number + 1, "/ping"))
            yield api
        if time.monotonic() - began >= WINDOW:
            self.check(f"scenario {prefix} was shorter than {WINDOW:.0f} s, a window", False)

    async def step(
        self,
        api: BotApi,
        title: str,
        activities: Sequence[Activity],
        seconds: float,
        what: str = "messages",
    ) -> list[Outcome]:
        """Run the activities and add the outcomes to the results."""
        outcomes = await play(api, activities, seconds)
        self.display.say(f"  {sum(each.sent for each in outcomes)} {what} delivered")
        self.display.log(self.logs.records)
        self.results.steps.append(Step(title, outcomes))
        return outcomes

    def check(self, sentence: str, holds: bool) -> None:
        """Record a check beyond the counts of a step."""
        self.results.checks[sentence] = holds

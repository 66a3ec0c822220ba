"""The past: invented statistics of the last day, so that the chart has more than this hour."""

import math
import random
import time
from functools import partial
from typing import Final

from bot_ratelimit import Decision, Rule, Subject
from bot_ratelimit.limiter.statistics import Statistics
from bot_ratelimit.storage.base import Storage
from example_bot.demo.dashboard.traffic import FLOODERS, PEOPLE

HOURS: Final = 23
BUSIEST: Final = 1_500  # decisions in the busiest hour

_RULE: Final = Rule("5/10s", name="messages")


async def fill_day(storage: Storage, prefix: str) -> None:
    """Count a quiet day in the hours before this one."""
    chance = random.Random(2)  # the same day every time
    now = time.time()
    for hours in range(1, HOURS + 1):
        then = now - hours * 3_600
        statistics = Statistics(storage, prefix, 2.0, clock=partial(float, then))
        # Users write most in the evening, and hardly anything twelve hours later.
        busy = 0.55 - 0.45 * math.cos((time.localtime(then).tm_hour - 7) / 12 * math.pi)
        flood = chance.random() < 0.3
        for _ in range(int(BUSIEST * busy * chance.uniform(0.8, 1.1))):
            kind = chance.random() + (0.0 if flood else 0.1)
            who = Subject(user=chance.choice(PEOPLE if kind > 0.25 else FLOODERS))
            banned = kind < 0.12
            decision = Decision(kind > 0.2, _RULE, 0, 0.0, 0.0, "redis", banned=banned)
            statistics.decided(decision, who, 0.0)
        await statistics.flush_at_end()

"""A bot under load that tells what limits it: run by test_cli.py as a process.

Each line on stdout: the time, and the limit of the decision just made, or `none`; only when it
differs from the line before.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from itertools import count

import redis.asyncio as aioredis

from bot_ratelimit import RateLimitMiddleware, Rule
from tests.incoming.support import Instance, user


async def main(port: int) -> None:
    client = aioredis.Redis(port=port)
    rule = Rule("100/hour", name="messages")
    middleware = RateLimitMiddleware(rule, client, live=True, on_error="memory", on_limited=None)
    instance = Instance(middleware, ())
    middleware.setup(instance.dispatcher)
    instance.dispatcher.message.register(instance._handle)
    await instance.dispatcher.emit_startup()
    said = ""
    for number in count():
        instance.decisions.clear()
        # A user of this process alone, whose first message is handled: there is a decision.
        await instance.send("hi", **{"from": user(os.getpid() * 1_000_000 + number)})
        decision = instance.decisions[0] if instance.decisions else None
        now = "none" if decision is None else f"{decision.rule.limit}"
        if now != said:
            said = now
            print(f"{time.time()} {now}", flush=True)  # noqa: T201 - the parent reads it
        await asyncio.sleep(0.005)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))

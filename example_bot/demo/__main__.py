"""`python -m example_bot.demo`: what the package does, in about 15 seconds, without Telegram."""

import asyncio
import os
import sys

from rich.console import Console

from bot_ratelimit import ConfigError
from example_bot.demo.acts import CROWD, INSTANCES, LIMIT, Play
from example_bot.demo.backend import open_backend, random_prefix
from example_bot.demo.crowd import FLOODERS
from example_bot.demo.display import Display
from example_bot.demo.tape import recorded


def main() -> int:
    """Perform the three acts, and return 0 only if what they claim is what happened."""
    try:
        return asyncio.run(perform(Display(Console())))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped before the end: nothing is claimed.", file=sys.stderr)
        return 130


async def perform(display: Display) -> int:
    """Perform the three acts on the Redis that `REDIS_URL` names, or an embedded one."""
    prefix = random_prefix()
    flooders = sum(person.group == FLOODERS for person in CROWD)
    # Not from .env: the demo must not reach for a bot's real Redis unless told to.
    async with open_backend(os.environ.get("REDIS_URL"), prefix) as backend:
        with recorded() as tape:
            play = Play(display, backend, prefix, tape)
            display.say(
                f"{INSTANCES} instances of one bot behind a load balancer, {backend.name}, and a "
                f"stand-in for Telegram. Everybody may send {LIMIT} messages a minute: "
                f"{len(CROWD) - flooders} users keep to that, {flooders} flooders do not."
            )
            await play.act_one()
            await play.act_two()
            await play.act_three()
    display.table(play.findings)
    display.verdict(play.findings)
    return play.findings.exit_status()


if __name__ == "__main__":
    sys.exit(main())

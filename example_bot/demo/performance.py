"""The performance: the four acts one after the other, and the verdict."""

import asyncio
import os
import sys
from pathlib import Path

from rich.console import Console

from bot_ratelimit import ConfigError
from example_bot.demo.acts import CROWD, act_one, act_three, act_two
from example_bot.demo.backend import open_backend, random_prefix
from example_bot.demo.crowd import FLOODERS
from example_bot.demo.display import Display
from example_bot.demo.sending import act_four
from example_bot.demo.stage import INSTANCES, LIMIT, Stage
from example_bot.demo.tape import recorded

SHOWN = (
    f"Without Redis {INSTANCES} instances count apart: a flooder gets {INSTANCES} times the limit.",
    "With Redis they share one count: a flooder gets exactly the limit, and users get theirs.",
    "Albums count once, buttons are always answered, payments are never refused.",
    "While Redis is away the bot answers everybody; limits hold again when Redis is back.",
)


def perform() -> int:
    """Perform the four acts, and return 0 only if what they claim is what happened."""
    try:
        return asyncio.run(_perform(Display(Console())))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2


async def _perform(display: Display) -> int:
    prefix = random_prefix()
    flooders = sum(person.group == FLOODERS for person in CROWD)
    # Not from .env: the demo must not reach for a bot's real Redis unless told to.
    async with open_backend(os.environ.get("REDIS_URL"), prefix) as backend:
        with recorded() as tape:
            stage = Stage(display, backend, prefix, tape)
            display.say(
                f"{INSTANCES} instances of one bot behind a load balancer, {backend.name}, and a "
                f"stand-in for Telegram. Everybody may send {LIMIT} messages a minute: "
                f"{len(CROWD) - flooders} users keep to that, {flooders} flooders do not."
            )
            await act_one(stage)
            await act_two(stage)
            await act_three(stage)
            await act_four(stage)
    display.table(stage.findings)
    display.verdict(stage.findings)
    if not stage.findings.differences():
        display.points("What you have seen:", SHOWN)
        display.points("What to do next:", _next_steps())
    return stage.findings.exit_status()


def _next_steps() -> tuple[str, ...]:
    python, here = Path(sys.executable), Path.cwd()
    command = python.relative_to(here) if python.is_relative_to(here) else python.name
    run = f"copy .env.example to .env, set BOT_TOKEN, and run: {command} -m example_bot"
    return (
        "For a bot of your own, copy the first example of README.md: it is complete.",
        f"To talk to this bot in Telegram, {run}",
        "To run three instances with Redis behind a proxy, see deploy/README.md.",
    )

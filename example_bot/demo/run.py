"""Runs the four scenarios one after the other and prints the results."""

import asyncio
import os
import sys
from pathlib import Path

from rich.console import Console

from bot_ratelimit import ConfigError
from example_bot.demo.backend import open_backend, random_prefix
from example_bot.demo.context import INSTANCES, LIMIT, DemoContext
from example_bot.demo.crowd import FLOODERS
from example_bot.demo.display import Display
from example_bot.demo.log_capture import captured_logs
from example_bot.demo.outgoing import scenario_four
from example_bot.demo.scenarios import CROWD, scenario_one, scenario_three, scenario_two

SHOWN = (
    f"Without Redis {INSTANCES} instances count apart: a flooder gets {INSTANCES} times the limit.",
    "With Redis they share one count: a flooder gets exactly the limit, and users get theirs.",
    "Albums count once, buttons are always answered, payments are never refused.",
    "While Redis is down the bot answers everybody; limits hold again when Redis is back.",
)


def run_demo() -> int:
    """Run the four scenarios.

    Returns:
        The exit status: 0 if everything happened as expected, 1 if not, 2 if the demo cannot start.
    """
    try:
        return asyncio.run(_run(Display(Console())))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2


async def _run(display: Display) -> int:
    prefix = random_prefix()
    flooders = sum(person.group == FLOODERS for person in CROWD)
    # Not from .env: the demo must not use the Redis of a real bot unless it is told to.
    async with open_backend(os.environ.get("REDIS_URL"), prefix) as backend:
        with captured_logs() as logs:
            context = DemoContext(display, backend, prefix, logs)
            display.say(
                f"{INSTANCES} instances of one bot behind a load balancer, {backend.name}, and a "
                f"stand-in for Telegram. Each user may send {LIMIT} messages a minute: "
                f"{len(CROWD) - flooders} users stay within the limit, {flooders} flooders do not."
            )
            await scenario_one(context)
            await scenario_two(context)
            await scenario_three(context)
            await scenario_four(context)
    display.table(context.results)
    display.conclusion(context.results)
    if not context.results.differences():
        display.points("What you have seen:", SHOWN)
        display.points("What to do next:", _next_steps())
    return context.results.exit_status()


def _next_steps() -> tuple[str, ...]:
    python, here = Path(sys.executable), Path.cwd()
    command = python.relative_to(here) if python.is_relative_to(here) else python.name
    run = f"copy .env.example to .env, set BOT_TOKEN, and run: {command} -m example_bot"
    return (
        "For a bot of your own, copy the first example of README.md: it is complete.",
        "To see such a flood on the page for operators, in a browser, run: make dashboard",
        f"To talk to this bot in Telegram, {run}",
        "To run three instances with Redis behind a proxy, see deploy/README.md.",
    )

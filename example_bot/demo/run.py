"""Runs the four scenarios one after the other and prints the results."""

import asyncio
import logging
import sys
from pathlib import Path

from rich.console import Console

from bot_ratelimit import ConfigError
from example_bot.demo.backend import Embedded
from example_bot.demo.context import INSTANCES, RATE_LIMIT, DemoContext, LogCapture
from example_bot.demo.display import Display
from example_bot.demo.outgoing import scenario_four
from example_bot.demo.scenarios import scenario_one, scenario_three, scenario_two

CODE = (
    "dispatcher = Dispatcher()",
    f'RateLimitMiddleware("{RATE_LIMIT}", Redis()).setup(dispatcher)',
    "",
    '@flags.rate_limit(limit="2/minute", key="report")  # of this handler',
    "async def report(message: Message) -> None: ...",
)
RUN = sys.executable.removeprefix(f"{Path.cwd()}/") + " -m example_bot"
SHOWN = (
    f"Without Redis {INSTANCES} instances count apart: a flooder gets {INSTANCES} times the limit.",
    "With Redis they share one count: a flooder gets exactly the limit, and users get theirs.",
    "Albums count once, buttons are always answered, payments are never refused.",
    "While Redis is down the bot answers everybody; limits hold again when Redis is back.",
)
NEXT = (
    "For a bot of your own, copy the first example of README.md: it is complete.",
    "To see such a flood on the page for operators, in a browser, run: make dashboard",
    f"To talk to this bot, copy .env.example to .env, set BOT_TOKEN, and run: {RUN}",
    "To run three instances with Redis behind a proxy, see deploy/README.md.",
)


def run_demo() -> int:
    """Run the four scenarios: status 0 if all was as expected, 1 if not, 2 if it cannot start."""
    try:
        return asyncio.run(_run(Display(Console())))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2


async def _run(display: Display) -> int:
    context = DemoContext(display, Embedded(), LogCapture())
    logger = logging.getLogger("bot_ratelimit")
    logger.addHandler(context.logs)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    display.say(
        f"{INSTANCES} instances of one bot behind a load balancer, an embedded Redis, and a "
        f"stand-in for Telegram. The limits in the bot's code:"
    )
    display.quote("", *CODE)
    for scenario in (scenario_one, scenario_two, scenario_three, scenario_four):
        await scenario(context)
    results = context.results
    display.table(results)
    display.conclusion(results)
    if results.differences():
        return 1
    display.points("What you have seen:", SHOWN)
    display.points("What to do next:", NEXT)
    return 0

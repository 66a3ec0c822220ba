"""Commands about the whole bot: the rules in force, and the decisions."""

from __future__ import annotations

from typing import Annotated

import typer

from bot_ratelimit.admin.cli import printing
from bot_ratelimit.admin.cli.dialogue import show_result
from bot_ratelimit.admin.cli.options import Json
from bot_ratelimit.admin.cli.session import run

commands = typer.Typer()


@commands.command()
def config(json: Json = False) -> None:
    """Show what is in force, on which instances, and where it comes from."""
    found = run(lambda control: control.config())
    show_result(found, json, *printing.config(found))


@commands.command()
def limits(json: Json = False) -> None:
    """List every rule of every middleware and flag."""
    found = run(lambda control: control.config())
    nobody = [] if found.instances else [printing.instances(found)]
    show_result(found.rules, json, printing.rules(found.rules), *nobody)


@commands.command()
def top(
    n: Annotated[int, typer.Argument(help="How many users.")] = 10,
    json: Json = False,
) -> None:
    """List the users who were refused most often in the last 24 hours."""
    found = run(lambda control: control.top(n))
    show_result(found, json, printing.listing(found, "nobody was refused"))


@commands.command()
def stats(
    hours: Annotated[int, typer.Argument(help="How many hours, up to now.")] = 24,
    json: Json = False,
) -> None:
    """Show decisions by hour, rule and outcome, over all instances."""
    found = run(lambda control: control.statistics(hours))
    show_result(found, json, printing.listing(found, "nothing was decided"))

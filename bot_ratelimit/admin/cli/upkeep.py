"""Commands to run a bot: its health, its limits file, its counts."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live as Screen

from bot_ratelimit.admin.cli import printing
from bot_ratelimit.admin.cli.dialogue import ask, confirm, show_result, stop
from bot_ratelimit.admin.cli.options import Json, Yes
from bot_ratelimit.admin.cli.session import NO, fail, read_settings, run
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.views import ConfigView, HealthView
from bot_ratelimit.config.limits_file import read_limits_file
from bot_ratelimit.errors import RateLimitError, StorageError
from bot_ratelimit.incoming.notices import Notices

commands = typer.Typer()


@commands.command()
def health(json: Json = False) -> None:
    """Check that limits are enforced, for a container's health check: exit status 0 or 1."""
    found = run(lambda control: control.health())
    show_result(found, json, printing.health(found))
    if not found.ok:
        raise typer.Exit(NO)


@commands.command()
def watch(
    every: Annotated[float, typer.Option(help="Seconds between two refreshes.", min=0.1)] = 2.0,
    count: Annotated[
        int | None, typer.Option(help="How many refreshes; by default without end.", min=1)
    ] = None,
    json: Json = False,
) -> None:
    """Keep showing limits, instances and health; with --json one line each time."""

    async def look(control: Control) -> tuple[HealthView, ConfigView | None]:
        found = await control.health()
        try:
            return found, await control.config()
        except StorageError:  # it may come back
            return found, None

    screen = None if json else Screen(console=printing.console(), auto_refresh=False)
    try:
        if screen is not None:
            screen.start()
        for number in range(count or sys.maxsize):
            if number:
                time.sleep(every)
            found, now = run(look)
            if screen is None:
                printing.print_json({"health": found, "config": now})
                sys.stdout.flush()
            else:
                parts = [] if now is None else printing.config(now)
                shown = parts[: -1 if now is not None and now.settings else None]
                lines = map(printing.literal, (printing.health(found), *shown))
                screen.update(Group(*lines), refresh=True)
    except KeyboardInterrupt:
        pass
    finally:
        if screen is not None:
            screen.stop()


@commands.command()
def check(file: Annotated[str, typer.Argument(help="A limits file.")], json: Json = False) -> None:
    """Check a limits file; a mistake is named in one line, with exit status 2."""
    try:
        found = read_limits_file(file)
        if found.notices:
            Notices(found.notices)
    except RateLimitError as error:
        fail(error)
    amount = printing.amount
    parts = [amount(len(found.rules or ()), "rule"), amount(len(found.limits), "named limit")]
    parts += [f"{len(found.exempt or ())} exempt", amount(len(found.notices), "notice")]
    parts += ["a penalty"] if found.penalty else []
    parts += ["outgoing budgets"] if found.outgoing else []
    show_result({"file": file, "ok": True}, json, f"{file}: {', '.join(parts)}")


@commands.command()
def clear(
    everything: Annotated[
        bool,
        typer.Option("--everything", help="Also delete live limits, history, audit and logouts."),
    ] = False,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Delete every count under the prefix; asks twice."""
    prefix = read_settings().redis_key_prefix
    what = "everything" if everything else "every count and ban"

    told = f"delete {what} under {prefix}:ratelimit:, for all users and chats"
    confirm("Clear?", yes, json, told)
    if not yes and ask(f"Type the prefix ({prefix}) to continue: ") != prefix:
        stop()
    found = run(lambda control: control.clear(everything=everything))
    show_result({"keys": found}, json, f"{printing.amount(found, 'key')} deleted")

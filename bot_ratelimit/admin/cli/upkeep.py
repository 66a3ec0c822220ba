"""Upkeep: what is only for a shell: watching, checking a limits file, clearing."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer
from rich.console import RenderableType

from bot_ratelimit.admin import sheets
from bot_ratelimit.admin.cli import terminal
from bot_ratelimit.admin.cli.terminal import fail, read_settings, run
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.views import ConfigView, HealthView
from bot_ratelimit.admin.wording import ENGLISH
from bot_ratelimit.admin.words import moment
from bot_ratelimit.config.limits_file import read_limits_file
from bot_ratelimit.errors import RateLimitError, StorageError

Json = Annotated[bool, typer.Option("--json", help="One line of JSON.")]


def watch(
    every: Annotated[float, typer.Option(help="Seconds between two refreshes.", min=0.1)] = 2.0,
    count: Annotated[
        int | None, typer.Option(help="How many refreshes; by default without end.", min=1)
    ] = None,
    json: Json = False,
) -> None:
    """Keep showing limits, instances and health; with --json one line each time."""
    for number in range(count or sys.maxsize):
        if number:
            time.sleep(every)
        health, config = run(_look)
        if json:
            terminal.print_json({"health": health, "config": config})
        else:
            terminal.console().clear()  # only of a terminal
            terminal.say([f"--- {moment(time.time())}", *_shown(health, config)])
        sys.stdout.flush()


async def _look(control: Control) -> tuple[HealthView, ConfigView | None]:
    found = await control.health()
    try:
        return found, await control.config()
    except StorageError:  # it may come back
        return found, None


def _shown(health: HealthView, config: ConfigView | None) -> list[RenderableType]:
    parts = terminal.laid_out(sheets.health(ENGLISH, health))
    if config is not None:
        parts += terminal.laid_out(sheets.config(ENGLISH, config, settings=False))
    return parts


def check(file: Annotated[str, typer.Argument(help="A limits file.")], json: Json = False) -> None:
    """Check a limits file; a mistake is named in one line, with exit status 2."""
    try:
        found = read_limits_file(file)
        if found.notices:
            from bot_ratelimit.incoming.notices import Notices  # slow: imports aiogram

            Notices(found.notices)
    except RateLimitError as error:
        fail(error)
    if json:
        terminal.print_json({"file": file, "ok": True})
    else:
        terminal.say([terminal.line(f"{file}: no mistakes")])


def confirm_prefix() -> None:
    """Let the operator type the prefix whose counts are deleted."""
    prefix = read_settings().redis_key_prefix
    if terminal.ask(f"Type the prefix ({prefix}) to continue: ") != prefix:
        terminal.stop()

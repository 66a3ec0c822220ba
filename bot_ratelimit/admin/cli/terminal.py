"""Terminal: a command acts on Redis, shows the result, and asks; a failure is its exit status.

Reasons of bans and names of operators and rules may contain anything. Nothing in them is markup,
and what a terminal would obey is escaped.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, NoReturn, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from bot_ratelimit.admin.changes import ConflictError
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.encoding import plain as as_json
from bot_ratelimit.admin.questions import Question
from bot_ratelimit.admin.sheets import Sheet
from bot_ratelimit.admin.words import plain
from bot_ratelimit.config.settings import Settings
from bot_ratelimit.errors import ConfigError, RateLimitError, StorageError, printable

_T = TypeVar("_T")

NO, WRONG, OUT_OF_REACH, CONFLICT, NOT_CONFIRMED, DEGRADED = 1, 2, 3, 4, 5, 6
_STATUSES: Final = (
    (StorageError, OUT_OF_REACH),
    (ConflictError, CONFLICT),
    (RateLimitError, WRONG),
)


def run(act: Callable[[Control], Awaitable[_T]]) -> _T:
    """Do something with a `Control` for the bot of the environment; a failure ends the command."""

    async def with_control() -> _T:
        control = Control.from_settings(read_settings(), f"{operator()}@{socket.gethostname()}")
        try:
            return await act(control)
        finally:
            await control.close()

    try:
        return asyncio.run(with_control())
    except RateLimitError as error:
        fail(error)


def read_settings() -> Settings:
    """The settings of the bot; ConfigError if they are wrong or name no Redis."""
    settings = Settings()
    if not settings.uses_redis:
        raise ConfigError(
            "without Redis each bot counts in its own process, which this command cannot read: "
            "set REDIS_URL or REDIS_HOST as for the bot"
        )
    return settings


def operator() -> str:
    """The name of the user who runs the command, for the audit."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container a user may be a number without a name
        return str(os.getuid())


def fail(error: RateLimitError) -> NoReturn:
    """End the command with an error and the status of its kind."""
    typer.echo(f"error: {printable(str(error))}", err=True)
    raise typer.Exit(next(status for kind, status in _STATUSES if isinstance(error, kind)))


# --- what it shows and asks -----------------------------------------------------------------------

_WIDE: Final = 10_000
"""Columns if the output is a pipe: so many that each row of a table is one line for grep."""


def console(*, stderr: bool = False) -> Console:
    """Where results go: as wide as the terminal, or as COLUMNS says."""
    piped = not (sys.stderr if stderr else sys.stdout).isatty() and "COLUMNS" not in os.environ
    return Console(width=_WIDE if piped else None, highlight=False, soft_wrap=False, stderr=stderr)


def say(parts: Iterable[RenderableType], *, stderr: bool = False) -> None:
    """Print lines and tables."""
    out = console(stderr=stderr)
    for part in parts:
        out.print(part)


def line(text: object) -> Text:
    """A line without markup."""
    return Text(plain(text))


def laid_out(sheet: Sheet) -> list[RenderableType]:
    """A sheet as lines and tables."""
    parts: list[RenderableType] = [line(each) for each in sheet.lines]
    if sheet.rows:
        parts += [*([""] if parts and sheet.more else []), _table(sheet)]
    parts += [line(each) for each in sheet.foot]
    for each in sheet.more:
        parts += ["", *laid_out(each)]
    return parts


def _table(sheet: Sheet) -> Table:
    """A table whose cells wrap instead of being cut."""
    found = Table(box=None, pad_edge=False, header_style="bold", show_header=bool(sheet.head))
    for name in sheet.head or sheet.rows[0]:
        found.add_column(plain(name), overflow="fold")
    for row in sheet.rows:
        found.add_row(*(line("" if cell is None else cell) for cell in row))
    return found


def print_json(value: Any) -> None:
    """Print a value as one line of JSON, in ASCII: any output can encode that."""
    sys.stdout.write(json.dumps(as_json(value)) + "\n")


def confirm(question: Question, *, yes: bool, is_json: bool) -> None:
    """Show what would be done, and end the command unless the operator agrees.

    With `--json`, standard output is for the result alone.
    """
    if not (is_json and yes):
        say(map(line, question.points), stderr=is_json)
    if not yes and ask(f"{plain(question.text)} [y/N] ").lower() not in {"y", "yes"}:
        stop()


def ask(question: str) -> str:
    """What the operator types; empty at the end of input. Standard output is for results only."""
    typer.echo(question, nl=False, err=True)
    # Python has no sys.stdin at all if the process was started with a closed one.
    return sys.stdin.readline().strip() if sys.stdin is not None else ""


def stop() -> NoReturn:
    """End the command before it has changed anything."""
    typer.echo("not confirmed: nothing was changed (use --yes to skip the question)", err=True)
    raise typer.Exit(NOT_CONFIRMED)

"""Session: what a command does on Redis, and the exit status when that fails."""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn, TypeVar

import typer

from bot_ratelimit.admin.changes import ConflictError
from bot_ratelimit.admin.control import Control
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

"""Script: a small Lua script that is no decision, sent by its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any, Protocol

from redis import exceptions

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.storage import encoding


class Executes(Protocol):
    """What can send a command to a Redis server, as `RedisStorage` can."""

    async def execute(self, command: encoding.Command, *, key: str, timeout: float) -> Any:
        """See `RedisStorage.execute`."""
        ...


class Script:
    """Runs a script of this package.

    It is sent by its hash. A server that does not know it says so before anything has run, and
    gets the whole script then. Nothing else is ever repeated.

    Args:
        name: Of the file, without `.lua`.
    """

    def __init__(self, name: str) -> None:
        folder = resources.files("bot_ratelimit.storage")
        self._text = folder.joinpath(f"{name}.lua").read_bytes()
        self._sha = hashlib.sha1(self._text, usedforsecurity=False).hexdigest().encode()

    async def run(
        self,
        server: Executes,
        keys: Sequence[str],
        *arguments: str | int,
        timeout: float,
    ) -> Any:
        """The script's reply.

        Args:
            server: Who runs it.
            keys: What it reads and writes; on a cluster, all in one slot.
            *arguments: What it finds in ARGV.
            timeout: Seconds, for each of at most two attempts.

        Raises:
            StorageError: The server is out of reach, too slow or cannot serve now.
            ConfigError: It will not serve before somebody changes a setting.
        """
        rest = [
            b"%d" % len(keys),
            *map(encoding.encode_key, keys),
            *(encoding.encode_key(str(a)) for a in arguments),
        ]
        try:
            return await server.execute(
                [b"EVALSHA", self._sha, *rest], key=keys[0], timeout=timeout
            )
        except ConfigError as error:
            if not isinstance(error.__cause__, exceptions.NoScriptError):
                raise
        return await server.execute([b"EVAL", self._text, *rest], key=keys[0], timeout=timeout)

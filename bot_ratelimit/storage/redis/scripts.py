"""Script: a small Lua script, sent by its hash, for anything that is not a decision."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any, Protocol

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.storage.redis import encoding


class Executes(Protocol):
    """Sends commands to a Redis server, as `RedisStorage` does."""

    async def execute(self, command: encoding.Command, *, key: str, timeout: float) -> Any:
        """See `RedisStorage.execute`."""
        ...


class Script:
    """Runs a Lua script of this package.

    The script is sent by its hash. A server that does not know the hash says so before anything is
    executed, and then gets the whole script. Nothing else is ever repeated.

    Args:
        name: The name of the file without `.lua`.
    """

    def __init__(self, name: str) -> None:
        folder = resources.files("bot_ratelimit.storage.redis")
        self._text = folder.joinpath(f"{name}.lua").read_bytes()
        self._sha = hashlib.sha1(self._text, usedforsecurity=False).hexdigest().encode()

    async def run(
        self,
        server: Executes,
        keys: Sequence[str],
        *arguments: str | int,
        timeout: float,
    ) -> Any:
        """Run the script and return its reply; `timeout` is for each of at most two attempts.

        The keys are those that it reads and writes; on a cluster, all in one slot. It raises what
        `RedisStorage.execute` raises.
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
            if not error.kind == "noscript":
                raise
        return await server.execute([b"EVAL", self._text, *rest], key=keys[0], timeout=timeout)


def text_of(reply: Any) -> str:
    """A value of a reply as text: bytes, or with `decode_responses` a str already."""
    return reply.decode("utf-8", "surrogatepass") if isinstance(reply, bytes) else str(reply)

"""Script: a small Lua script, sent by its hash, for anything that is not a decision."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Any, TypeAlias

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.storage.deadline import Deadline
from bot_ratelimit.storage.redis.encoding import encode_key

Execute: TypeAlias = Callable[..., Awaitable[Any]]
"""`RedisStorage.execute`."""


class Script:
    """Runs a Lua script.

    The script is sent by its hash. A server that does not know the hash says so before anything is
    executed, and then gets the whole script. Nothing else is ever repeated.
    """

    def __init__(self, text: str) -> None:
        self._text = text.encode()
        self._sha = hashlib.sha1(self._text, usedforsecurity=False).hexdigest().encode()

    async def run(
        self,
        execute: Execute,
        keys: Sequence[str],
        *arguments: str | int | bytes,
        timeout: float,
    ) -> Any:
        """Run the script and return its reply, within `timeout` seconds for at most two attempts.

        A second attempt has at least 0.3 of them, because a busy event loop makes the first one
        longer, although the server is fast.

        The keys are those that it reads and writes; on a cluster, all in one slot. It raises what
        `RedisStorage.execute` raises.
        """
        rest = [
            each if isinstance(each, bytes) else encode_key(str(each))
            for each in (len(keys), *keys, *arguments)
        ]
        began, deadline = time.monotonic(), Deadline(timeout)
        try:
            return await execute([b"EVALSHA", self._sha, *rest], key=keys[0], timeout=timeout)
        except ConfigError as error:
            if error.kind != "noscript":
                raise
        deadline.waited(began, answered=True)
        text = [b"EVAL", self._text, *rest]
        return await execute(text, key=keys[0], timeout=deadline.left())


def script_in(name: str) -> Script:
    """The script in a file of this folder."""
    folder = resources.files("bot_ratelimit.storage.redis")
    return Script(folder.joinpath(f"{name}.lua").read_text("utf-8"))


def text_of(reply: Any) -> str:
    """A value of a reply as text: bytes, or with `decode_responses` a str already."""
    return reply.decode("utf-8", "surrogatepass") if isinstance(reply, bytes) else str(reply)

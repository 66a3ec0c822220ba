"""Arguments of OutgoingLimits: their checks, and the limiter that they lead to."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from aiogram import Bot, Dispatcher

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.outgoing.journal import Journal
from bot_ratelimit.outgoing.methods import Kind
from bot_ratelimit.outgoing.progress import Progress
from bot_ratelimit.rules.checks import describe_type, number
from bot_ratelimit.storage.memory import MemoryStorage
from bot_ratelimit.storage.redis.storage import RedisStorage

if TYPE_CHECKING:
    from bot_ratelimit.storage.redis.driver import Client

log = logging.getLogger("bot_ratelimit")

TIMEOUT: Final = 1.0
"""A request can wait for Redis; an answer that is mistaken for lost costs a second burst."""
MAX_WAIT: Final = 10.0
_KINDS: Final = (Kind.MESSAGE, Kind.EDIT, Kind.DRAFT, Kind.METHOD)


def limiter_of(client: Client | str | None, key_prefix: str, limiter: Limiter | None) -> Limiter:
    """The limiter that was given, or a new one; the log says where it keeps the budgets.

    Raises:
        ConfigError: An argument is wrong, or given although the limiter already has it.
    """
    if limiter is None:
        storage = MemoryStorage() if client is None else RedisStorage(client)
        limiter = Limiter(storage, key_prefix=key_prefix, on_error="memory", timeout=TIMEOUT)
    elif not isinstance(limiter, Limiter):
        raise ConfigError(
            f"limiter is {describe_type(limiter)}: expected Limiter(storage); "
            "a Redis client goes into redis_client"
        )
    else:
        others = {"redis_client": client is not None}
        others["key_prefix"] = key_prefix not in ("bot", limiter.key_prefix)
        if given := [name for name, differs in others.items() if differs]:
            raise ConfigError(
                f"{' and '.join(given)} and limiter are both given: give them to the limiter, "
                "Limiter(RedisStorage(client), key_prefix=...)"
            )
    if limiter.storage.source == "redis":
        log.info(
            "OutgoingLimits: Using Redis, all instances share the budgets (key prefix: %s)",
            limiter.key_prefix,
        )
    else:
        log.warning(
            "OutgoingLimits: Redis not provided, this process paces by itself. "
            "Several instances together will send more than Telegram accepts"
        )
    return limiter


def max_waits(value: object) -> dict[Kind, float]:
    """The longest wait after a 429 for each kind of requests.

    Raises:
        ConfigError: It is neither a number nor a number for some of the kinds.
    """
    kinds = [kind.value for kind in _KINDS]
    given = value if isinstance(value, Mapping) else dict.fromkeys(kinds, value)
    if unknown := [name for name in given if name not in kinds]:
        raise ConfigError(f"max_wait={value!r}: unknown {unknown}; expected some of {kinds}")
    if not all(number(each) >= 0 for each in given.values()):
        raise ConfigError(f"max_wait={value!r}: expected seconds from 0 up, for example 10.0")
    return {kind: number(given.get(kind.value, MAX_WAIT)) for kind in _KINDS}


def check_setup(bot: object, dispatcher: object) -> None:
    """Raise ConfigError unless these are a Bot, and a Dispatcher or None."""
    if not isinstance(bot, Bot):
        raise ConfigError(
            f"setup needs the Bot, not {describe_type(bot)}: "
            "OutgoingLimits(...).setup(bot, dispatcher) paces what this bot sends"
        )
    if dispatcher is not None and not isinstance(dispatcher, Dispatcher):
        raise ConfigError(
            f"setup needs the Dispatcher, not {describe_type(dispatcher)}: setup(bot, dispatcher)"
        )


def check_broadcast(chats: object, send: object, journal: object, progress: object) -> None:
    """Raise ConfigError unless these are arguments of `OutgoingLimits.broadcast`."""
    many = isinstance(chats, (Iterable, AsyncIterable)) and not isinstance(chats, str)
    for name, value, is_right, expected in (
        ("chats", chats, many, "ids, for example a list of them"),
        ("send", send, callable(send), "an async function that takes a chat"),
        ("journal", journal, isinstance(journal, Journal | None), "Journal('news.journal')"),
        ("progress", progress, isinstance(progress, Progress | None), "Progress()"),
    ):
        if not is_right:
            raise ConfigError(f"{name} is {describe_type(value)}: expected {expected}")

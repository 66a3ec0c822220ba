"""Arguments of the middleware: their checks, and which of them exclude each other."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from weakref import WeakSet

from aiogram.types import TelegramObject
from aiogram.utils.i18n.lazy_proxy import LazyProxy  # type: ignore[attr-defined]  # not in its __all__

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.incoming.functions import check_functions, check_takes
from bot_ratelimit.incoming.notices import Notices
from bot_ratelimit.limiter.decision import NO_LIMIT, Decision
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.limiter.observer import ObserverLike
from bot_ratelimit.rules.checks import describe_type
from bot_ratelimit.rules.concurrency import Concurrency
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import LimitLike, OnError, Rule, RuleLike, Rules, Scope, rules_of
from bot_ratelimit.storage.base import Storage
from bot_ratelimit.storage.memory import MemoryStorage
from bot_ratelimit.storage.redis.storage import RedisStorage

if TYPE_CHECKING:
    from bot_ratelimit.storage.redis.driver import Client

log = logging.getLogger("bot_ratelimit")

OnLimited: TypeAlias = Callable[[TelegramObject, Decision, dict[str, Any]], "Awaitable[Any] | Any"]
OnLimitedLike: TypeAlias = Notices | str | Mapping[str, str] | OnLimited | None


class DefaultNames(frozenset[str]):
    """The default of `never_refuse`; signatures show its name, not its 80 items."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NEVER_REFUSED"


def notices_of(on_limited: OnLimitedLike, name: str = "on_limited") -> Notices | OnLimited | None:
    """Return what notifies refused users; `name` is that of the argument, for errors.

    Raises:
        ConfigError: It is neither texts, nor `Notices`, nor a function of (event, decision, data),
            nor None.
    """
    texts: Any = on_limited
    if isinstance(texts, (str, Mapping, LazyProxy)):
        return Notices(texts)
    if on_limited is None or isinstance(on_limited, Notices):
        return on_limited
    if callable(on_limited) and not isinstance(on_limited, type):
        check_takes(name, on_limited, "event", "decision", "data")
        return on_limited
    raise ConfigError(
        f"{name}={on_limited!r}: expected a text, texts by language, Notices(...), "
        "a function of (event, decision, data), or None"
    )


def rules_given(rate_limit: RuleLike | Iterable[RuleLike] | None, penalty: Penalty | None) -> Rules:
    """Return the rules of a middleware; `NO_LIMIT` if only handlers with a flag are limited.

    Raises:
        ConfigError: One of them does not count events, or the penalty is none.
    """
    if isinstance(rate_limit, Mapping):
        raise ConfigError(
            f"rate_limit={rate_limit!r}: expected a limit such as '5/10s', a Rule, or several"
        )
    if penalty is not None and not isinstance(penalty, Penalty):
        raise ConfigError(f"penalty={penalty!r}: expected Penalty('10/minute', ban='15m')")
    rules = NO_LIMIT if rate_limit is None else check_functions(rules_of(rate_limit))
    for rule in rules:
        if isinstance(rule, Concurrency):
            raise ConfigError(
                f"rate_limit: {str(rule)!r} does not count events: give it to a handler, "
                "@flags.rate_limit(concurrent=1)"
            )
    return rules if penalty is None else rules_of((*rules, penalty))


BOTS_PATH: Final = "bots:member:"
"""The path of the limit of other bots."""


def rules_for_bots(bots: LimitLike | None) -> Rules:
    """Return the rules for messages of other bots; empty if they are limited like users.

    Raises:
        ConfigError: This is not a limit.
    """
    if bots is None:
        return Rules()
    try:
        limit = Limit.of(bots)
    except ConfigError as error:
        raise ConfigError(f"bots={bots!r}: {error}") from None
    ignored = Penalty("1/minute", "1m", scope=Scope.MEMBER)
    return rules_of((Rule(limit, Scope.MEMBER, "bots"), ignored))


def limiter_of(
    limiter: Limiter | None,
    redis_client: Client | str | None,
    key_prefix: str,
    *,
    on_error: OnError | None,
    timeout: float | None,
    observer: ObserverLike,
    statistics: bool,
) -> Limiter:
    """Return the limiter that is given, or make one of the other arguments.

    Raises:
        ConfigError: Both are given, or an argument is invalid.
    """
    if limiter is None:
        return Limiter(
            storage_for(redis_client),
            key_prefix=key_prefix,
            on_error="allow" if on_error is None else on_error,
            timeout=0.25 if timeout is None else timeout,
            observer=observer,
            statistics=statistics,
        )
    if not isinstance(limiter, Limiter):
        raise ConfigError(
            f"limiter is {describe_type(limiter)}: expected Limiter(storage); "
            "a Redis client goes into redis_client"
        )
    others = {
        "redis_client": redis_client,
        "key_prefix": None if key_prefix in ("bot", limiter.key_prefix) else key_prefix,
        "on_error": on_error,
        "timeout": timeout,
        "observer": observer,
        "statistics": statistics or None,
    }
    if given := [name for name, value in others.items() if value is not None]:
        raise ConfigError(
            f"{' and '.join(given)} and limiter are both given: give them to the limiter, "
            "Limiter(storage, key_prefix=..., on_error=..., timeout=..., observer=...)"
        )
    return limiter


def storage_for(client: Client | str | None, memory_size: int = 10_000) -> Storage:
    """Return the storage of a client or URL of Redis, or without one of this process."""
    return implicit(MemoryStorage(memory_size)) if client is None else RedisStorage(client)


def implicit(storage: Storage) -> Storage:
    """Return a storage that was chosen because nothing was configured."""
    if isinstance(storage, MemoryStorage):
        _implicit.add(storage)
    return storage


_implicit: Final[WeakSet[MemoryStorage]] = WeakSet()


def announce(limiter: Limiter, rules: Rules) -> None:
    """Log where counts are kept, in the words that operators search for."""
    limits = "only of handlers" if rules[0] is NO_LIMIT[0] else "; ".join(map(str, rules))
    if limiter.storage.source != "memory":
        log.info(
            "RateLimitMiddleware: Using %s for distributed rate limiting "
            "(limit: %s; key prefix: %s)",
            limiter.storage.title,
            limits,
            limiter.key_prefix,
        )
    elif limiter.storage not in _implicit:
        log.info("RateLimitMiddleware: counting in this process (limit: %s)", limits)
    else:
        log.warning(
            "RateLimitMiddleware: Redis not provided, using in-memory cache (limit: %s). "
            "This will NOT work correctly in multi-instance deployment",
            limits,
        )

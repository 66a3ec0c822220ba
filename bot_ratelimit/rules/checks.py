"""Checks of arguments: each returns the value, or raises a ConfigError that says what to give."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import suppress
from inspect import iscoroutinefunction, signature
from typing import Any, Final, TypeVar

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.periods import parse_period, shown

Function = TypeVar("Function", bound=Callable[..., Any])

# In a key, the rule's name and then the scope's name stand between the prefix and the ids. These
# words are reserved by the package, so that no name can lead to the keys of another rule.
RESERVED_NAMES: Final = frozenset(
    {"chat", "member", "topic", "global", "custom", "once", "ban", "bot", "business", "notice"}
    | {"sliding", "bucket"}
    | {"out", "slot", "stats", "same", "collect", "migrated", "none"}
    | {"live", "history", "audit", "instances"}
    | {"user"}  # how operators refer to a rule without a name
)
_NAME: Final = re.compile(r"[^\s:{}*?\[\]\\\x00-\x1f\x7f]{1,200}")
_PREFIX: Final = re.compile(r"(?!.*://)[^\s*?\[\]\\\x00-\x1f\x7f]{1,128}")


def check_name(name: object, called: str = "name") -> None:
    """Raise ConfigError unless this is a name that a rule can have."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{called}={name!r}: expected 1 to 200 characters without spaces, ':', braces or "
            "'*?[]\\'"
        )
    if name in RESERVED_NAMES:
        raise ConfigError(f"{called}={name!r}: this name is reserved; choose another one")


def check_prefix(prefix: object, called: str = "key_prefix") -> str:
    """Return the prefix of all keys."""
    if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
        raise ConfigError(
            f"{called}={shown(prefix)}: expected 1 to 128 characters without spaces or '*?[]\\', "
            "for example 'booking_bot:client1'"
        )
    return prefix


def check_whole(name: str, value: object, least: int, most: int | None = None) -> int:
    """Return a whole number within its bounds."""
    if type(value) is int and least <= value <= (math.inf if most is None else most):
        return value
    bounds = f"from {least} up" if most is None else f"from {least} to {most}"
    raise ConfigError(f"{name}={value!r}: expected a whole number {bounds}")


def check_flag(name: str, value: object) -> bool:
    """Return a bool."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r}: expected True or False")
    return value


def number(value: object) -> float:
    """The number; NaN, which is in no range, for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def seconds_of(value: object) -> float:
    """The seconds of a number or of a period as text; NaN, which is in no range, otherwise."""
    with suppress(ConfigError):
        return number(parse_period(value) if isinstance(value, str) else value)
    return math.nan


def check_timeout(value: object) -> float:
    """Return the time-out of a storage in seconds."""
    seconds = number(value)
    if not 0 < seconds <= 3600:
        raise ConfigError(
            f"timeout={value!r}: expected seconds above 0, at most 3600, for example 0.25"
        )
    return seconds


def check_wait(timeout: object) -> float:
    """Return how long a caller waits, in seconds; infinity for None."""
    seconds = number(timeout)
    if timeout is not None and not 0 <= seconds < math.inf:
        raise ConfigError(
            f"timeout={timeout!r}: expected seconds from 0 up, or None to wait as long as it takes"
        )
    return math.inf if timeout is None else seconds


def check_policy(on_error: object) -> None:
    """Raise ConfigError unless this is what can answer when the storage fails."""
    if on_error not in ("allow", "deny", "memory"):
        raise ConfigError(f"on_error={shown(on_error)}: expected 'allow', 'deny' or 'memory'")


def check_cost(cost: object, limit: Limit | None, rule: object) -> None:
    """Raise ConfigError unless a hit of this cost could ever be allowed."""
    value = check_whole("cost", cost, 1)
    if limit is not None and value > limit.capacity:
        raise ConfigError(
            f"cost={cost}: the rule {str(rule)!r} never grants more than {limit.capacity} at once, "
            "so such a hit would always be refused"
        )


def not_async(what: str, function: Function) -> Function:
    """Return the function unless it is async: an answer is needed for every hit at once.

    A function of (event, data) may be async, because the middleware can wait for it.
    """
    call = getattr(function, "__call__", None)  # noqa: B004 - of a callable object
    if (iscoroutinefunction(function) or iscoroutinefunction(call)) and _takes_one(function):
        raise ConfigError(
            f"{what}={getattr(function, '__qualname__', function)}: expected a function that is "
            "not async; read what it needs beforehand, for example into a dict, and look it up here"
        )
    return function


def _takes_one(function: Callable[..., Any]) -> bool:
    try:
        signature(function).bind(None)
    except TypeError:
        return False
    return True


def describe_type(value: object) -> str:
    """Describe the type of a value for an error: `a Redis`, or `the class Redis`."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"

"""Checks of what rules are made of: names, prefixes, costs and functions."""

from __future__ import annotations

import re
from collections.abc import Callable
from inspect import iscoroutinefunction, signature
from typing import Any, Final, TypeVar

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.limit import Limit

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
_PREFIX: Final = re.compile(r"[^\s*?\[\]\\\x00-\x1f\x7f]{1,128}")


def check_name(name: object) -> None:
    """Raise ConfigError unless this is a valid name of a rule."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"name={name!r}: expected 1 to 200 characters without spaces, ':', braces or '*?[]\\'"
        )
    if name in RESERVED_NAMES:
        raise ConfigError(f"name={name!r}: this name is reserved; choose another one")


def check_prefix(prefix: object) -> str:
    """Return the prefix if it is valid.

    Raises:
        ConfigError: It is not.
    """
    if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
        raise ConfigError(
            f"key_prefix={prefix!r}: expected 1 to 128 characters without spaces or '*?[]\\', "
            "for example 'booking_bot:client1'"
        )
    return prefix


def check_cost(cost: object, limit: Limit, rule: object) -> None:
    """Raise ConfigError unless a hit of this cost could ever be allowed."""
    if isinstance(cost, bool) or not isinstance(cost, int) or cost < 1:
        raise ConfigError(f"cost={cost!r}: expected a whole number from 1 up")
    if cost > limit.capacity:
        raise ConfigError(
            f"cost={cost}: the rule {str(rule)!r} never grants more than {limit.capacity} at once, "
            "so such a hit would always be refused"
        )


def not_async(what: str, function: Function) -> Function:
    """Return the function.

    Raises:
        ConfigError: It is async and takes a `Subject`; but an answer is needed for every hit at
            once.
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


def wrong_id(rule: object, is_known: bool, found: object) -> str:
    """The error for something whose text may differ for every hit, which would limit nobody."""
    kind = type(found).__name__
    if is_known:
        return f"{kind} is not an id: expected numbers, Subject(user=message.from_user.id)"
    return (
        f"the scope of {str(rule)!r} returned a {kind}: expected a function, not async, that "
        "returns a str, or None where the rule does not apply"
    )


def no_rules(value: object) -> str:
    """The error for something in place of rules; of a client it shows no more than its type."""
    if hasattr(value, "connection_pool") or type(value).__module__.startswith("redis"):
        return (
            f"a {type(value).__name__} stands where the limit belongs: give the limit first, "
            "RateLimitMiddleware('5/10s', redis)"
        )
    return f"{value!r}: expected a limit such as '5/10s', a Rule, or several"

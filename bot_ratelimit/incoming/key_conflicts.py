"""Key conflicts: no two limits of a bot count under one key.

::

    dp.message.middleware(RateLimitMiddleware("5/minute", redis))         bot:ratelimit:42
    dp.callback_query.middleware(RateLimitMiddleware("3/s", redis))       bot:ratelimit:42

The shorter window would end the longer one, so such a bot does not start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from aiogram.dispatcher.router import Router

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Rule

_T = TypeVar("_T")


def registered_middlewares(root: Router, kind: type[_T]) -> list[_T]:
    """Return the middlewares of this class in the whole bot.

    Raises:
        ConfigError: The class itself is registered instead of an instance.
    """
    found: dict[int, _T] = {}
    for router in root.chain_tail:
        for name, observer in router.observers.items():
            registered: list[Any] = [*observer.outer_middleware, *observer.middleware]
            for each in registered:
                if isinstance(each, type) and issubclass(each, kind):
                    raise ConfigError(class_registered_message(each, name))
                if isinstance(each, kind):
                    found[id(each)] = each
    return list(found.values())


def class_registered_message(kind: type, observer: str = "message") -> str:
    """The error message if the class itself is registered instead of an instance."""
    name = kind.__name__
    return (
        f"{name} is registered as a class: register an instance, "
        f"dp.{observer}.middleware({name}(...))"
    )


def rules_by_path(rules: Iterable[Rule]) -> dict[str, Rule]:
    """Return the rules of all middlewares that share their keys, by path.

    Raises:
        ConfigError: Two of them have different limits under one key.
    """
    found: dict[str, Rule] = {}
    for rule in rules:
        other = found.setdefault(rule.path, rule)
        if limit_of(other) != limit_of(rule):
            fix = (
                "give both the same penalty, or one of them another scope or key_prefix"
                if isinstance(rule, Penalty)
                else f"give one of them a name, for example Rule({str(rule.limit)!r}, name='slow')"
            )
            raise ConfigError(
                f"two middlewares would count different limits under one key, {str(other)!r} and "
                f"{str(rule)!r}: {fix}"
            )
    return found


def conflicts(one: Mapping[str, Rule], other: Mapping[str, Rule]) -> Iterator[str]:
    """Yield the paths under which the two count different limits."""
    return (
        path for path in one.keys() & other.keys() if limit_of(one[path]) != limit_of(other[path])
    )


def limit_of(rule: Rule) -> object:
    """The part of a rule that must be equal for rules to share a key."""
    if isinstance(rule, Penalty):
        return rule.limit, rule.ban_ms, rule.longest_ms
    return rule.limit

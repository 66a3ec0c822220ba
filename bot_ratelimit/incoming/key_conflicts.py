"""Key conflicts: no two rules of a bot's middlewares count different limits under one key.

::

    dp.message.middleware(RateLimitMiddleware("5/minute", redis))         bot:ratelimit:42
    dp.callback_query.middleware(RateLimitMiddleware("3/s", redis))       bot:ratelimit:3/s:42

Without a name, both rules would count under `bot:ratelimit:42`, and the shorter window would end
the longer one. So the later rule gets the text of its limit as its name. The order is that of
registration, not of the events, because all instances of the bot must use the same keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from copy import copy
from functools import cmp_to_key
from hashlib import sha256
from itertools import chain, count
from typing import Any, Final, TypeVar

from aiogram.dispatcher.router import Router

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Rule, Rules, rules_of

_T = TypeVar("_T")

_MAX_NAME: Final = 200
_FORBIDDEN: Final = re.compile(r"[\s:{}*?\[\]\\\x00-\x1f\x7f]")


def registered_middlewares(root: Router, kind: type[_T], made: Callable[[_T], int]) -> list[_T]:
    """Return the middlewares of this class in the whole bot, in the order of registration.

    aiogram keeps this order only for each observer. If no observer has both of two middlewares, the
    one that was created first comes first.

    Args:
        root: The dispatcher.
        kind: The class.
        made: Returns a number that grows with the time of creation of a middleware.

    Raises:
        ConfigError: The class itself is registered instead of an instance.
    """
    lists: list[list[Any]] = []
    for router in root.chain_tail:
        for name, observer in router.observers.items():
            for manager in (observer.outer_middleware, observer.middleware):
                check_instances(manager, kind, name)
                lists.append([each for each in manager if isinstance(each, kind)])

    def later(one: _T, other: _T) -> int:
        for each in lists:
            if one in each and other in each:
                return each.index(one) - each.index(other)
        return made(one) - made(other)

    found: dict[int, _T] = {id(each): each for each in chain.from_iterable(lists)}
    return sorted(found.values(), key=cmp_to_key(later))


def check_instances(middlewares: Iterable[Any], kind: type, observer: str) -> None:
    """Raise ConfigError if the class itself is registered instead of an instance."""
    for each in middlewares:
        if isinstance(each, type) and issubclass(each, kind):
            raise ConfigError(class_registered_message(each, observer))


def class_registered_message(kind: type, observer: str = "message") -> str:
    """The error message if the class itself is registered instead of an instance."""
    name = kind.__name__
    return (
        f"{name} is registered as a class: register an instance, "
        f"dp.{observer}.middleware({name}(...))"
    )


def separate_keys(groups: Iterable[tuple[Hashable, Rules]]) -> list[tuple[Hashable, Rules]]:
    """Rename rules so that different limits use different keys, and return the new groups.

    Args:
        groups: The rules of each middleware in the order of registration. The first value says what
            they share keys with: rules of another server or prefix never conflict.
    """
    taken: dict[tuple[Hashable, str], Rule] = {}
    names: dict[tuple[Hashable, str, object], str] = {}
    result: list[tuple[Hashable, Rules]] = []
    for space, rules in groups:
        own = {(space, rule.path) for rule in rules}
        found = []
        for rule in rules:
            first = taken.setdefault((space, rule.path), rule)
            if limit_of(first) != limit_of(rule):
                original = (space, rule.path, limit_of(rule))
                if original not in names:
                    names[original] = next(
                        name
                        for name in _candidate_names(rule)
                        if (space, _renamed(rule, name).path) not in taken.keys() | own
                    )
                rule = _renamed(rule, names[original])
                taken[space, rule.path] = rule
            found.append(rule)
        result.append((space, rules_of(found)))
    return result


def rules_by_path(groups: Iterable[tuple[Hashable, Rules]], space: Hashable) -> dict[str, Rule]:
    """All rules that share keys with a group, by the path that they have in common."""
    return {rule.path: rule for each, rules in groups if each == space for rule in rules}


def conflict_message(before: Rule, now: Rule, other: Rule) -> str:
    """The warning for the operator about a renamed rule."""
    if isinstance(before, Penalty):
        fix = "give both middlewares the same Penalty to share bans"
    else:
        text = repr(_limit_text(before)) if isinstance(before.limit, Limit) else _limit_text(before)
        fix = f"to choose its name, give Rule({text}, name='...')"
    return (
        f"two middlewares would count different limits under one key, '{other}' and '{before}'. "
        f"The later one, '{before}', counts apart, under <prefix>:ratelimit:{now.path}...; {fix}"
    )


def limit_of(rule: Rule) -> object:
    """The part of a rule that must be equal for rules to share a key."""
    if isinstance(rule, Penalty):
        return rule.limit, rule.ban_ms, rule.longest_ms
    return rule.limit


def shorten_name(name: str) -> str:
    """Return a valid name of a rule; one that is too long is cut and ends with its hash."""
    name = _FORBIDDEN.sub("_", name)
    if len(name) <= _MAX_NAME:
        return name
    digest = sha256(name.encode()).hexdigest()[:16]
    return f"{name[: _MAX_NAME - 17]}~{digest}"


def _limit_text(rule: Rule) -> str:
    if isinstance(rule.limit, Limit):
        return str(rule.limit)
    limit: Any = rule.limit
    return str(getattr(limit, "__name__", type(limit).__name__))


def _candidate_names(rule: Rule) -> Iterator[str]:
    name = _limit_text(rule)
    if isinstance(rule, Penalty):
        name += f"-{rule.ban_ms / 1_000:g}s"
    yield name
    yield from (f"{name}#{number}" for number in count(2))


def _renamed(rule: Rule, text: str) -> Rule:
    """The same rule with another key, for a penalty for example `ban:10/minute-900s:42`."""
    text = shorten_name(text.replace(" ", "-"))
    again, put = copy(rule), object.__setattr__
    if isinstance(rule, Penalty):
        put(again, "path", f"ban:{text}:{rule.path.removeprefix('ban:')}")
        return again
    name = shorten_name(f"{rule.name}.{text}") if rule.name else text
    scope = rule.path.removeprefix(f"{rule.name}:") if rule.name else rule.path
    put(again, "name", name)
    put(again, "path", f"{name}:{scope}")
    return again

"""Flags: reads the `rate_limit` flag of handlers.

::

    @flags.rate_limit("3/minute")
    @flags.rate_limit(limit="3/minute; 20/day", key="ai", cost=2, scope="chat")
    @flags.rate_limit(by_plan)                        a function of (event, data)
    @flags.rate_limit(rate=2, key="something")        one event in 2 seconds
    @flags.rate_limit(limit="20/day", concurrent=1)   and one at a time
    @flags.rate_limit(limit="9/m", collect="1.5s")    several quick messages as one
    @flags.rate_limit(key="ai")                       the limit with this name, see RATE_LIMIT_FILE
    @router.message(flags={"rate_limit": False})      no limit here
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from aiogram import flags as aiogram_flags
from aiogram.dispatcher.event.handler import HandlerObject
from aiogram.dispatcher.flags import Flag, FlagDecorator, extract_flags
from aiogram.dispatcher.router import Router

from bot_ratelimit.config.limits_file import NamedLimits
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.incoming.collect import MESSAGES_KEY, Collect, collect_of
from bot_ratelimit.incoming.functions import EventRule, check_functions, looks_like_limit
from bot_ratelimit.incoming.handler_names import (
    HandlerNames,
    full_name,
    handlers_of,
    shorten_name,
)
from bot_ratelimit.incoming.key_conflicts import conflicts, limit_of
from bot_ratelimit.rules.checks import check_name
from bot_ratelimit.rules.concurrency import Concurrency
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Rule, Rules, Scope, changed, rules_of
from bot_ratelimit.storage.base import Storage

FLAG: Final = "rate_limit"

_NO_RULES: Final = frozenset({"concurrent", "collect", "key", "scope"})
"""A flag with only these fields keeps the middleware's rules."""
_CHANGES: Final = ("scope", "cost", "shadow", "on_error")
_FIELDS: Final = _NO_RULES | {"limit", "rate", "cost", "shadow", "on_error"}


@dataclass(frozen=True, slots=True)
class HandlerLimits:
    """What the flag of a handler says."""

    rules: Rules | bool = True
    """The handler's own rules; True for those of the middleware, False for none."""
    slots: Concurrency | None = None
    """How many of the handler may run at a time."""
    collect: Collect | None = None
    """How several quick messages become one call of the handler."""
    name: str = ""
    """The name of its counts."""


_UNFLAGGED: Final = HandlerLimits()


class Flags:
    """Reads the flag of each handler once.

    Args:
        storage: Keeps the slots and the collected messages.
        penalty: Applies together with the own rules of every handler.
        others: The rules of the bot's middlewares that share this one's keys, by path.
        limits: Named limits. One with a flag's key or a handler's name wins over what the flag
            itself says.
    """

    def __init__(
        self,
        storage: Storage,
        penalty: Rule | None = None,
        others: Mapping[str, Rule] | None = None,
        limits: NamedLimits | None = None,
    ) -> None:
        self.limits = limits or {}
        self._penalty = () if penalty is None else (penalty,)
        self._others = others or {}
        self._storage = storage
        self.names = HandlerNames(FLAG)
        """Of all handlers, also of those without the flag."""
        # By identity, because handler objects cannot be hashed; as many entries as handlers.
        self._read: dict[int, tuple[HandlerObject, HandlerLimits]] = {}
        self._holders: dict[tuple[Router, str], list[tuple[HandlerObject, Rule]]] = {}

    def limits_for(self, handler: HandlerObject | None, router: Router | None) -> HandlerLimits:
        """Return what the flag of a handler says.

        Args:
            handler: The handler of the event; None while it is not known.
            router: Any router of the bot, to find its other handlers.

        Raises:
            ConfigError: The flag is invalid or needs more than the storage has, or something else
                counts a different limit under its key. The message names the handlers.
        """
        if handler is None or FLAG not in extract_flags(handler):
            return _UNFLAGGED
        known = self._read.get(id(handler))
        if known is None:
            found = self._flag_of(handler, router)
            self._check_keys(handler, found, router)
            if not isinstance(found.rules, bool):
                found = replace(found, rules=rules_of((*found.rules, *self._penalty)))
            known = self._read[id(handler)] = (handler, found)
        return known[1]

    def check(self, root: Router) -> None:
        """Read the flags of all handlers.

        Raises:
            ConfigError: A flag is invalid; the message names the handler.
        """
        for handler in _flagged(root):
            self.limits_for(handler, root)

    def by_handler(self, root: Router) -> Iterator[tuple[str, Rules, bool]]:
        """Yield each handler with own rules: its name, the rules, whether they are named limits.

        The rules are without the penalty.
        """
        for handler, rules in self._with_rules(root):
            yield full_name(handler), rules, self._key_of(handler, root) in self.limits

    def keys(self, root: Router) -> set[str]:
        """Return the names under which the flags of this bot look for named limits."""
        flagged = (each for each in _flagged(root) if not isinstance(_value(each), bool))
        return {self._key_of(each, root) for each in flagged}

    def numbered(self, root: Router) -> list[str]:
        """Return the names under which handlers are counted that depend on the registration."""
        found = []
        for handler, rules in self._with_rules(root):
            name = self.names.name_of(handler, root)
            if "#" in name and any(rule.name.startswith(shorten_name(name)) for rule in rules):
                found.append(name)
        return found

    def _key_of(self, handler: HandlerObject, root: Router) -> str:
        flag = _value(handler)
        key = flag.get("key") if isinstance(flag, Mapping) else None
        return str(key or self.names.name_of(handler, root))

    def _flag_of(self, handler: HandlerObject, router: Router | None) -> HandlerLimits:
        name = self.names.name_of(handler, router)
        try:
            found = read_flag(_value(handler), name, self.limits)
            if found.collect and not handler.varkw and MESSAGES_KEY not in handler.params:
                raise ConfigError(
                    "with collect= the handler needs the argument messages: list[Message], because "
                    "it is called once for several messages"
                )
            if found.slots:
                self._storage.leases()  # a ConfigError if it keeps none
            if found.collect:
                self._storage.documents()
            return found
        except ConfigError as error:
            raise ConfigError(f"the rate_limit flag of {full_name(handler)}: {error}") from None

    def readable(self, root: Router) -> Iterator[tuple[HandlerObject, HandlerLimits]]:
        """Yield each handler with a valid flag, and what the flag says."""
        for handler in _flagged(root):
            try:
                yield handler, self._flag_of(handler, root)
            except ConfigError:  # raised when the flag of that handler is read
                continue

    def _with_rules(self, root: Router) -> Iterator[tuple[HandlerObject, Rules]]:
        for handler, found in self.readable(root):
            if not isinstance(found.rules, bool):
                yield handler, found.rules

    def _check_keys(
        self, handler: HandlerObject, found: HandlerLimits, router: Router | None
    ) -> None:
        """Raise ConfigError if something else has other limits or slots under these keys."""
        own = _by_path(found)
        name = full_name(handler)
        for path in conflicts(own, self._others):
            raise ConfigError(
                f"the rate_limit flag of {name} ({own[path]}) and a middleware "
                f"({self._others[path]}) would count different limits under one key; give the "
                "flag another key, or both the same limit"
            )
        if router is None:
            return
        *_, root = router.chain_head
        if any((root, path) not in self._holders for path in own):
            self._find_holders(root)
        for path, rule in own.items():
            for other, its in self._holders.get((root, path), ()):
                is_other = limit_of(its) != limit_of(rule)
                if is_other and any(each is other for each in handlers_of(root)):
                    raise ConfigError(
                        f"the rate_limit flags of {name} ({rule}) and {full_name(other)} ({its}) "
                        "would count different limits under one key; give them different keys, "
                        "or the same limit"
                    )

    def _find_holders(self, root: Router) -> None:
        """Find the first handler of a bot for each limit under each path."""
        for handler, found in self.readable(root):
            for path, rule in _by_path(found).items():
                same = self._holders.setdefault((root, path), [])
                if all(limit_of(rule) != limit_of(other) for _, other in same):
                    same.append((handler, rule))


def read_flag(value: Any, name: str, limits: NamedLimits) -> HandlerLimits:
    """Return what a flag says.

    Args:
        value: The flag.
        name: The name of the handler, under which it is counted if the flag has no `key`.
        limits: Named limits.

    Raises:
        ConfigError: The flag is invalid.
    """
    if isinstance(value, bool):
        return HandlerLimits(value)
    flag = _with_named_limit(value, name, limits)
    unknown = set(flag) - _FIELDS
    plain = not unknown and {"concurrent", "collect"} & set(flag) and set(flag) <= _NO_RULES
    if not plain and (unknown or ("limit" in flag) == ("rate" in flag)):
        raise ConfigError(
            "expected limit= or rate=, and optionally concurrent=, collect=, key=, cost=, scope=, "
            f"shadow= or on_error=; got {value!r}"
        )
    if flag.get("key"):
        name = str(flag["key"])
        check_name(name, "key")
    slots = _slots_of(flag, name) if "concurrent" in flag else None
    found = HandlerLimits(True, slots, collect_of(flag.get("collect")), shorten_name(name))
    if plain:
        return found
    given = flag["limit"] if "limit" in flag else flag["rate"]
    changes = {field: flag[field] for field in _CHANGES if field in flag}
    rules = _rules_of_flag(given)
    if given is value and _all_named(given):
        return replace(found, rules=rules)  # so rules that are shared by handlers share a count
    return replace(found, rules=_named(rules, name, **changes))


def _flagged(root: Router) -> Iterator[HandlerObject]:
    return (each for each in handlers_of(root) if FLAG in extract_flags(each))


def _value(handler: HandlerObject) -> Any:
    return extract_flags(handler)[FLAG]


def _by_path(found: HandlerLimits) -> dict[str, Rule]:
    rules = () if isinstance(found.rules, bool) else found.rules
    return {rule.path: rule for rule in (*rules, *([found.slots] if found.slots else []))}


def _with_named_limit(value: Any, name: str, limits: NamedLimits) -> Mapping[str, Any]:
    """The flag as a mapping, completed by the named limit that it refers to."""
    flag = value if isinstance(value, Mapping) else {"limit": value}
    key = str(flag.get("key") or name)
    if key in limits:
        return {**{field: flag[field] for field in flag if field != "rate"}, **limits[key]}
    if flag.get("key") and not {"limit", "rate", "concurrent", "collect"} & set(flag):
        raise ConfigError(
            f"no limit is named {key!r}: add {key} = '5/minute' under [limits] in the file that "
            f"RATE_LIMIT_FILE names, write named_limits={{{key!r}: '5/minute'}} in the middleware, "
            "or give the flag limit='5/minute'"
        )
    return flag


def _rules_of_flag(value: Any) -> Rules:
    """The rules of a flag. Other kinds of rules are refused: they would become ordinary limits."""
    rules = check_functions(rules_of(value))
    for rule in rules:
        if isinstance(rule, Penalty):
            raise ConfigError(
                "a Penalty belongs to the middleware, RateLimitMiddleware(..., penalty=...), and "
                "applies to the limits of handlers too"
            )
        if isinstance(rule, Concurrency):
            raise ConfigError("a Concurrency is no limit: write concurrent=, not limit=")
    return rules


def _slots_of(flag: Mapping[str, Any], name: str) -> Concurrency:
    given = flag["concurrent"]
    own = shorten_name(name)
    if not isinstance(given, Concurrency):
        given = Concurrency(given, flag.get("scope", Scope.USER), own)
    elif not given.name:
        given = Concurrency(given.amount, given.scope, own, lease=given.lease)
    return changed(given, on_error=flag.get("on_error"))


def _all_named(given: Any) -> bool:
    rules = given if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    return all(isinstance(rule, Rule) and rule.name for rule in rules)


def _named(rules: Rules, name: str, **changes: Any) -> Rules:
    """The rules with the handler's name, so that handlers do not share counts by accident."""
    return rules_of(
        [
            rule
            if isinstance(rule, EventRule)
            else Rule(
                rule.limit,
                name=shorten_name(f"{name}.{rule.name}" if rule.name else name),
                **{field: getattr(rule, field) for field in _CHANGES} | changes,
            )
            for rule in rules
        ]
    )


class _RateLimitFlag(FlagDecorator):
    """`flags.rate_limit`, which takes a lambda or a function of (event, data) for a limit.

    aiogram's own decorator takes every function for the handler itself.
    """

    @classmethod
    def _with_flag(cls, flag: Flag) -> FlagDecorator:
        return FlagDecorator(flag)  # this one decorates the handler

    def __call__(self, value: Any = None, *more: Any, **kwargs: Any) -> Any:
        if more or (value is not None and kwargs):
            named = ", ".join(f"{name}={each!r}" for name, each in kwargs.items())
            raise ConfigError(
                f"@flags.rate_limit({value!r}, ...): expected one value, or each with its name: "
                f"write limit={value!r}, {named or 'concurrent=1'}"
            )
        if not kwargs and looks_like_limit(value):
            return self._with_value(value)
        return super().__call__(value, **kwargs)


# The generator makes every other flag on demand.
aiogram_flags.rate_limit = _RateLimitFlag(Flag(FLAG, True))  # type: ignore[attr-defined]  # see above

"""Flags: reads the `rate_limit` flag of handlers.

::

    @flags.rate_limit("3/minute")
    @flags.rate_limit(limit="3/minute; 20/day", key="ai", cost=2, scope="chat")
    @flags.rate_limit(rate=2, key="something")        one event in 2 seconds
    @flags.rate_limit(limit="20/day", concurrent=1)   and one at a time
    @flags.rate_limit(key="ai")                       the limit with this name, see RATE_LIMIT_FILE
    @router.message(flags={"rate_limit": False})      no limit here
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from inspect import unwrap
from typing import Any, Final

from aiogram.dispatcher.event.handler import HandlerObject
from aiogram.dispatcher.flags import extract_flags
from aiogram.dispatcher.router import Router
from aiogram.fsm.scene import SceneHandlerWrapper

from bot_ratelimit.config.limits_file import NamedLimits, scope_named
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.incoming.key_conflicts import limit_of, shorten_name
from bot_ratelimit.rules.checks import check_name
from bot_ratelimit.rules.concurrency import Concurrency
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Rule, Rules, Scope, rules_of

FLAG: Final = "rate_limit"

_FIELDS: Final = frozenset({"limit", "rate", "key", "cost", "scope", "shadow", "concurrent"})


class Flags:
    """Reads the flag of each handler once.

    Args:
        penalty: Applies together with the own rules of every handler.
        others: The rules of the bot's middlewares that share this one's keys, by path.
        limits: Named limits. One with a flag's key or a handler's name wins over what the flag
            itself says.
    """

    def __init__(
        self,
        penalty: Rule | None = None,
        others: Mapping[str, Rule] | None = None,
        limits: NamedLimits | None = None,
    ) -> None:
        self.limits = limits or {}
        self._penalty = () if penalty is None else (penalty,)
        self._others = others or {}
        # By identity, because handler objects cannot be hashed; there are as many entries as
        # handlers.
        self._read: dict[int, tuple[HandlerObject, Rules | bool]] = {}
        self._slots: dict[int, Concurrency] = {}
        self._names: dict[int, str] = {}

    def rules_for(self, handler: HandlerObject | None, router: Router | None) -> Rules | bool:
        """Return the handler's own rules; True if it has none of its own, False if it has no limit.

        Args:
            handler: The handler of the event; None while it is not known.
            router: Any router of the bot, to find its other handlers.

        Raises:
            ConfigError: The flag is invalid, or something else counts a different limit under its
                key. The message names the handlers.
        """
        if handler is None or FLAG not in (flags := extract_flags(handler)):
            return True
        known = self._read.get(id(handler))
        if known is None:
            name = self._name_of(handler, router)
            rules = read_flag(flags[FLAG], handler, name, self.limits)
            if not isinstance(rules, bool):
                self._check_keys(handler, rules, router)
                rules = rules_of((*rules, *self._penalty))
            slots = read_concurrency(flags[FLAG], handler, name)
            if slots is not None:
                self._check_slots(handler, slots, router)
                self._slots[id(handler)] = slots
            known = self._read[id(handler)] = (handler, rules)
        return known[1]

    def slots_for(self, handler: HandlerObject | None) -> Concurrency | None:
        """Return how many of the handler may run at a time; known after a call of `rules_for`."""
        return self._slots.get(id(handler)) if self._slots else None

    def check(self, root: Router) -> None:
        """Read the flags of all handlers.

        Raises:
            ConfigError: A flag is invalid; the message names the handler.
        """
        for handler in _flagged(root):
            self.rules_for(handler, root)

    def all_rules(self, root: Router) -> list[Rule]:
        """Return the rules of all handlers with a valid flag, without the penalty."""
        return [rule for _, rules in self._readable(root) for rule in rules]

    def by_handler(self, root: Router) -> Iterator[tuple[str, Rules, bool]]:
        """Yield each handler with own rules: its name, the rules, whether they are named limits."""
        for handler, rules in self._readable(root):
            flag, name = extract_flags(handler)[FLAG], self._name_of(handler, root)
            key = flag.get("key") if isinstance(flag, Mapping) else None
            yield _full_name(handler), rules, (key or name) in self.limits

    def _readable(self, root: Router) -> Iterator[tuple[HandlerObject, Rules]]:
        for handler in _flagged(root):
            try:
                flag, name = extract_flags(handler)[FLAG], self._name_of(handler, root)
                rules = read_flag(flag, handler, name, self.limits)
            except ConfigError:  # raised when the flag of that handler is read
                continue
            if not isinstance(rules, bool):
                yield handler, rules

    def _check_keys(self, handler: HandlerObject, rules: Rules, router: Router | None) -> None:
        """Raise ConfigError if something else counts different limits under these keys."""
        paths = {rule.path: rule for rule in rules}
        for path in paths.keys() & self._others.keys():
            if limit_of(self._others[path]) != limit_of(paths[path]):
                raise ConfigError(
                    f"the rate_limit flag of {_full_name(handler)} ({paths[path]}) and a "
                    f"middleware ({self._others[path]}) would count different limits under one "
                    "key; give the flag another key, or both the same limit"
                )
        if router is None:
            return
        *_, root = router.chain_head
        for other, other_rules in self._readable(root):
            for rule in other_rules:
                if rule.path in paths and limit_of(rule) != limit_of(paths[rule.path]):
                    raise ConfigError(
                        f"the rate_limit flags of {_full_name(handler)} ({paths[rule.path]}) and "
                        f"{_full_name(other)} ({rule}) would count different limits under one "
                        "key; give them different keys, or the same limit"
                    )

    def _check_slots(
        self, handler: HandlerObject, slots: Concurrency, router: Router | None
    ) -> None:
        """Raise ConfigError if another handler has a different number of slots under this key."""
        if router is None:
            return
        *_, root = router.chain_head
        for other in _flagged(root):
            try:
                other_slots = read_concurrency(
                    extract_flags(other)[FLAG], other, self._name_of(other, root)
                )
            except ConfigError:  # raised when the flag of that handler is read
                continue
            if other_slots is not None and other_slots.path == slots.path and other_slots != slots:
                raise ConfigError(
                    f"the rate_limit flags of {_full_name(handler)} ({slots}) and "
                    f"{_full_name(other)} ({other_slots}) would share slots of different numbers; "
                    "give them different keys, or the same number"
                )

    def _name_of(self, handler: HandlerObject, router: Router | None) -> str:
        """Return a name that is the same on all instances of the bot, and unique for each function.

        Lambdas, partials and inner functions may have the same name, so they are numbered in the
        order in which the bot registers them. A function that is registered with several limits is
        numbered in the same way.
        """
        if id(handler) not in self._names and router is not None:
            *_, root = router.chain_head
            known: dict[str, list[Any]] = {}
            for each in _flagged(root):
                same = known.setdefault(_full_name(each), [])
                one = (each.callback, extract_flags(each)[FLAG])
                if one not in same:
                    same.append(one)
                number = same.index(one) + 1
                self._names[id(each)] = _full_name(each) + (f"#{number}" if number > 1 else "")
        return self._names.get(id(handler)) or _full_name(handler)


def _flagged(root: Router) -> Iterator[HandlerObject]:
    for router in root.chain_tail:
        for observer in router.observers.values():
            for handler in observer.handlers:
                if FLAG in extract_flags(handler):
                    yield handler


def read_flag(
    value: Any, handler: HandlerObject, name: str, limits: NamedLimits | None = None
) -> Rules | bool:
    """Return the rules of a flag, with the given name or its own; or the flag if it is a bool."""
    if isinstance(value, bool):
        return value
    try:
        value = _with_named_limit(value, name, limits or {})
        if not isinstance(value, Mapping):
            rules = _rules_of_flag(value)
            # A rule with a name of its own keeps it, and so shares its count.
            given = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
            if all(isinstance(rule, Rule) and rule.name for rule in given):
                return rules
            return _named(rules, name)
        unknown = sorted(set(value) - _FIELDS, key=str)
        if not unknown and "concurrent" in value and set(value) <= {"concurrent", "key", "scope"}:
            return True
        if unknown or ("limit" in value) == ("rate" in value):
            raise ConfigError(
                "expected limit= or rate=, and optionally concurrent=, key=, cost=, scope= or "
                f"shadow=; got {value!r}"
            )
        rules = _rules_of_flag(value["limit"] if "limit" in value else value["rate"])
        changes = {name: value[name] for name in ("cost", "shadow") if name in value}
        if "scope" in value:
            changes["scope"] = _scope_of(value["scope"])
        if value.get("key"):
            name = str(value["key"])
            check_name(name)
        return _named(rules, name, **changes)
    except ConfigError as error:
        raise ConfigError(f"the rate_limit flag of {_full_name(handler)}: {error}") from None


def read_concurrency(value: Any, handler: HandlerObject, name: str) -> Concurrency | None:
    """Return how many of the handler may run at a time; None if its flag does not say so."""
    if not isinstance(value, Mapping) or "concurrent" not in value:
        return None
    given = value["concurrent"]
    try:
        if isinstance(given, Concurrency) and given.name:
            return given
        if value.get("key"):
            name = str(value["key"])
            check_name(name)
        if isinstance(given, Concurrency):
            return Concurrency(given.amount, given.scope, shorten_name(name), lease=given.lease)
        scope = _scope_of(value.get("scope", Scope.USER))
        return Concurrency(given, scope, shorten_name(name))
    except ConfigError as error:
        raise ConfigError(f"the rate_limit flag of {_full_name(handler)}: {error}") from None


def _rules_of_flag(value: Any) -> Rules:
    """The rules of a flag. Other kinds of rules are refused: they would become ordinary limits."""
    rules = rules_of(value)
    for rule in rules:
        if isinstance(rule, Penalty):
            raise ConfigError(
                "a Penalty belongs to the middleware, RateLimitMiddleware(..., penalty=...), and "
                "applies to the limits of handlers too"
            )
        if isinstance(rule, Concurrency):
            raise ConfigError("a Concurrency is no limit: write concurrent=, not limit=")
    return rules


def _with_named_limit(value: Any, name: str, limits: NamedLimits) -> Any:
    """The flag, completed by the named limit that it refers to."""
    said = value if isinstance(value, Mapping) else {}
    key = str(said.get("key") or name)
    if key in limits:
        return {**{field: said[field] for field in said if field != "rate"}, **limits[key]}
    if said.get("key") and not {"limit", "rate", "concurrent"} & set(said):
        raise ConfigError(
            f"no limit is named {key!r}: add {key} = '5/minute' under [limits] in the file that "
            "RATE_LIMIT_FILE names, or give the flag limit='5/minute'"
        )
    return value


def _named(rules: Rules, name: str, **changes: Any) -> Rules:
    """The rules with the handler's name, so that handlers do not share counts by accident."""
    return rules_of(
        [
            Rule(
                rule.limit,
                name=shorten_name(f"{name}.{rule.name}" if rule.name else name),
                **{"scope": rule.scope, "cost": rule.cost, "shadow": rule.shadow, **changes},
            )
            for rule in rules
        ]
    )


def _scope_of(value: Any) -> Any:
    return scope_named(value) if isinstance(value, str) else value


def _full_name(handler: HandlerObject) -> str:
    callback = _innermost_function(handler)
    kind = type(callback)
    module = getattr(callback, "__module__", kind.__module__)
    return f"{module}.{getattr(callback, '__qualname__', kind.__qualname__)}"


def _innermost_function(handler: HandlerObject) -> Any:
    callback: Any = handler.callback
    if isinstance(callback, SceneHandlerWrapper):
        callback = callback.handler.callback
    callback = unwrap(callback)
    while isinstance(callback, partial):
        callback = callback.func
    return callback

"""Functions that choose the limit of an event.

::

    async def by_plan(event: TelegramObject, data: dict[str, Any]) -> str | None:
        return None if await is_admin(data["event_from_user"]) else "5/minute"

    RateLimitMiddleware(by_plan)

The limiter knows no events: these functions are called here, before it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import lru_cache
from inspect import isawaitable, signature
from typing import Any

from aiogram.types import TelegramObject

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limiter.decision import NO_LIMIT
from bot_ratelimit.rules.checks import check_cost
from bot_ratelimit.rules.concurrency import Concurrency
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import (
    Rule,
    Rules,
    Subject,
    changed,
    named,
    rules_of,
    set_fields,
)


@dataclass(frozen=True, slots=True, init=False)
class ChosenRule(Rule):
    """A rule whose limit a function chose for this event."""

    function: str
    """The name of the function."""

    @classmethod
    def of(cls, rule: Rule, limit: Limit, function: str) -> ChosenRule:
        """Make it of the function's rule and the limit that the function returned."""
        check_cost(rule.cost, limit, rule)
        chosen = object.__new__(cls)
        copied = {each.name: getattr(rule, each.name) for each in fields(Rule)}
        set_fields(chosen, **copied | {"limit": limit, "function": function})
        return chosen

    def __str__(self) -> str:
        """The rule in logs and errors, for example `5/minute per user, chosen by by_plan`."""
        return f"{Rule.__str__(self)}, chosen by {self.function}"


class EventRule:
    """Mixed into rules that depend on the event itself, such as `Debounce`."""

    __slots__ = ()

    def of_event(self, event: TelegramObject) -> Rule | None:
        """Return the rule for this event; None if it does not apply."""
        raise NotImplementedError


def check_functions(rules: Rules) -> Rules:
    """Return the rules.

    Raises:
        ConfigError: A function takes neither a `Subject` nor (event, data).
    """
    for rule in rules:
        if not isinstance(rule.limit, Limit):
            _takes_event(rule.limit)
    return rules


def check_takes(name: str, function: Callable[..., Any], *arguments: str) -> None:
    """Raise ConfigError unless a function can be called with these arguments."""
    try:
        parameters = signature(function)
    except (TypeError, ValueError):  # written in C
        return
    try:
        parameters.bind(*arguments)
    except TypeError:
        raise ConfigError(
            f"{name}={named(function)} takes {parameters}: expected a function of "
            f"({', '.join(arguments)})"
        ) from None


def looks_like_limit(value: object) -> bool:
    """Whether this is a lambda or a function of (event, data), and not a handler.

    A handler has no argument `data`: aiogram passes it the values in `data` by their names.
    """
    if not callable(value) or isinstance(value, (type, Rule)):
        return False
    try:
        parameters = list(signature(value).parameters.values())
    except (TypeError, ValueError):
        return False
    if getattr(value, "__name__", "") == "<lambda>":
        return True
    names = [each.name for each in parameters[:2]]
    more = parameters[2:]
    return names[1:] == ["data"] and all(each.default is not each.empty for each in more)


def needs_event(rules: Rules) -> bool:
    """Whether these rules have to be chosen for each event."""
    for rule in rules:  # noqa: SIM110 - any() takes twice as long, for every update
        if not isinstance(rule.limit, Limit) or isinstance(rule, EventRule):
            return True
    return False


async def chosen(
    rules: Rules, subject: Subject, event: TelegramObject, data: dict[str, Any]
) -> Rules:
    """Replace each function by what it returns for this event; `NO_LIMIT` if nothing applies.

    Raises:
        ConfigError: A function returned neither a limit, nor rules, nor None.
    """
    found: list[Rule] = []
    for rule in rules:
        if isinstance(rule, EventRule):
            applied = rule.of_event(event)
            found += [] if applied is None else [applied]
        elif isinstance(rule.limit, Limit):
            found.append(rule)
        else:
            takes_event = _takes_event(rule.limit)
            said = rule.limit(event, data) if takes_event else rule.limit(subject)
            if takes_event and isawaitable(said):
                said = await said
            found += _rules_said(rule, said)
    return rules_of(found) if found else NO_LIMIT


def _rules_said(rule: Rule, said: Any) -> Iterable[Rule]:
    """The rules that a function returned.

    A limit gets the scope, cost and name of the function's rule. A rule keeps its own scope and
    cost, and the name of the function's rule is put before its name. One
    without a name that would share a key takes its limit as its name, as in `rules_of`.
    """
    if said is None:
        return
    function = named(rule.limit)
    unnamed = changed(rule, name="", path=rule.path.removeprefix(f"{rule.name}:"))
    parts: list[Any] = [said]
    if isinstance(said, Iterable) and not isinstance(said, (str, Rule)):
        parts = list(said)
    try:
        if sum(isinstance(part, (int, float)) for part in parts) > 1:
            rules_of(parts)  # an error that says what to write instead
        given = [
            each if each is part else changed(unnamed, limit=each.limit)
            for part in parts
            for each in rules_of(part)
        ]
        for each in rules_of(given) if given else ():
            of_other_kind = isinstance(each, (Penalty, Concurrency, EventRule))
            if of_other_kind or not isinstance(each.limit, Limit):
                raise ConfigError(f"{str(each)!r} is not a limit that a function can return")
            name = ".".join(text for text in (rule.name, each.name) if text)
            one = Rule(each.limit, each.scope, name, each.cost, each.shadow, each.on_error)
            yield ChosenRule.of(one, each.limit, function)
    except ConfigError as error:
        raise ConfigError(
            f"{function} returned {said!r}: {error}; return a limit, a Rule, several, or None"
        ) from None


def _takes_event(function: Callable[..., Any]) -> bool:
    try:
        return _takes_event_once(function)
    except TypeError:  # a callable object without a hash
        return _takes_event_once.__wrapped__(function)


@lru_cache(1_024)
def _takes_event_once(function: Callable[..., Any]) -> bool:
    """Whether a function is called with (event, data), and not with a Subject."""
    try:
        parameters = signature(function)
    except (TypeError, ValueError):  # written in C
        return False
    takes = []
    for arguments in ((None,), (None, None)):
        try:
            parameters.bind(*arguments)
        except TypeError:
            takes.append(False)
        else:
            takes.append(True)
    subject, event = takes
    if not subject and not event:
        raise ConfigError(
            f"the limit {named(function)} takes {parameters}: expected a function of "
            "(event, data), or of a Subject"
        )
    return event and not subject

"""Rule, Scope and Subject: who is counted, against which limit, under which key."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from operator import attrgetter
from typing import Any, ClassVar, Final, Literal, NamedTuple, TypeAlias, TypeVar

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.checks import (
    check_cost,
    check_flag,
    check_name,
    check_policy,
    describe_type,
    not_async,
)
from bot_ratelimit.rules.limit import MAX_PERIOD_MS, Limit


class Subject(NamedTuple):
    """Who an event comes from: Telegram's ids, as far as they are known.

    A rule whose scope needs an id that is None does not apply.

    ::

        Subject(user=42, chat=-100123)

    Attributes:
        user: Id of the user, or of the channel or group that writes in place of one.
        chat: Id of the chat.
        topic: Id of the topic (message thread) in that chat.
        bot: Id of the bot; given only where several bots with one prefix count apart.
        business: Id of the business connection, in a chat that the bot serves in the name of a
            business account.
    """

    user: int | None = None
    chat: int | None = None
    topic: int | None = None
    bot: int | None = None
    business: str | None = None


class Scope(Enum):
    """Who shares one count.

    ==========  ===========================================
    `USER`      a user, in all chats together (the default)
    `CHAT`      everybody in a chat
    `MEMBER`    a user in one chat
    `TOPIC`     everybody in a topic (message thread)
    `GLOBAL`    everybody
    ==========  ===========================================

    For anything else, give a callable that takes a `Subject` and returns the text that is counted::

        Rule("100/minute", lambda subject: company_of(subject.user), name="company")
    """

    USER = "user"
    CHAT = "chat"
    MEMBER = "member"
    TOPIC = "topic"
    GLOBAL = "global"


OnError: TypeAlias = Literal["allow", "deny", "memory"]
CustomScope: TypeAlias = Callable[[Subject], "str | None"]
LimitLike: TypeAlias = "Limit | str | float"
CustomLimit: TypeAlias = Callable[..., Any]
"""A function of a `Subject` that returns its limit or None; or one of (event, data), which only the
middleware can call, and which may be async and return rules as well."""
RuleLike: TypeAlias = "Rule | LimitLike | CustomLimit"
Ids: TypeAlias = Callable[[Subject], "int | str | None"]

# For each scope: its part of the key, and the ids of a subject that it counts by.
_PATHS: Final[dict[Scope, tuple[str, Callable[[Subject], int | str | None]]]] = {
    Scope.USER: ("", attrgetter("user")),
    Scope.CHAT: ("chat:", attrgetter("chat")),
    Scope.MEMBER: ("member:", lambda s: _pair(s.chat, s.user)),
    Scope.TOPIC: ("topic:", lambda s: _pair(s.chat, s.topic)),
    Scope.GLOBAL: ("global", lambda s: ""),
}


@dataclass(frozen=True, slots=True, init=False)
class Rule:
    """A limit, and who shares one count.

    ::

        Rule("5/10s")                                  # each user
        Rule("20/minute", Scope.CHAT)                  # each chat
        Rule("20/day", name="ai", cost=2)              # a separate count, two for each hit
        Rule("2/s", shadow=True, name="trial")         # refuses nobody, only reports
        Rule("3/day", name="image", on_error="deny")   # refuses while Redis fails

    Args:
        limit: A `Limit`, its text (`"5/10s"`), the seconds for one event, or a callable that
            returns one of these for a subject, or None if the rule does not apply to it. It must
            not be async; but in a middleware or a flag it may be a function of (event, data),
            async or not.
        scope: Who shares one count, also as text (`"chat"`). A callable returns, for a subject, the
            text under which it is counted, or None if the rule does not apply to it; such a rule
            needs a name.
        name: Keeps the counts of rules with the same scope apart: up to 200 characters without
            spaces, `:`, braces or the wildcards of a Redis pattern.
        cost: What one hit costs, from 1 to what the limit can grant at once.
        shadow: Count and report, but never refuse, to try a new limit on live traffic.
        on_error: What this rule answers when Redis fails: `"allow"`, `"deny"` or `"memory"`; None
            (the default) leaves it to the limiter.

    Raises:
        ConfigError: An argument is invalid.
    """

    tells_left: ClassVar[bool] = True
    """Whether a decision that allows tells what is left of it."""

    limit: Limit | CustomLimit
    scope: Scope | CustomScope
    name: str
    cost: int
    shadow: bool
    on_error: OnError | None
    path: str = field(repr=False)
    """The part of its keys between the prefix and the ids."""
    ids: Ids = field(repr=False, compare=False)
    """Returns the ids of a subject that it counts by; None if the rule does not apply to it."""

    def __init__(
        self,
        limit: LimitLike | CustomLimit,
        scope: Scope | str | CustomScope = Scope.USER,
        name: str = "",
        cost: int = 1,
        shadow: bool = False,
        on_error: OnError | None = None,
    ) -> None:
        scope = _scope_of(scope)
        if not isinstance(scope, Scope) and not name:
            raise ConfigError(f"scope={scope!r}: a rule with a custom scope needs a name")
        if name != "":
            check_name(name)
        if on_error is not None:
            check_policy(on_error)
        path, ids = _PATHS[scope] if isinstance(scope, Scope) else ("custom:", scope)
        set_fields(
            self,
            limit=not_async("limit", limit) if callable(limit) else Limit.of(limit),
            scope=scope,
            name=name,
            cost=cost,
            shadow=check_flag("shadow", shadow),
            on_error=on_error,
            path=f"{name}:{path}" if name else path,
            ids=ids,
        )
        check_cost(cost, self.limit if isinstance(self.limit, Limit) else None, self)

    @property
    def label(self) -> str:
        """Its name for operators and in metrics, such as `user`, `ai` or `chat`."""
        return self.path.rstrip(":") or "user"

    def limit_for(self, subject: Subject) -> Limit | None:
        """Return the limit of this subject; None if the rule does not apply to it."""
        limit = self.limit if isinstance(self.limit, Limit) else self.limit(subject)
        return None if limit is None else Limit.of(limit)

    def key(self, prefix: str, subject: Subject, limit: Limit | None = None) -> str | None:
        """Return the Redis key that counts this subject; None if the rule does not apply to it.

        ==============================  ===================================
        `Rule("1/s")`                   `bot:ratelimit:42`
        `Rule("5/m", name="ai")`        `bot:ratelimit:ai:42`
        `Rule("20/m", Scope.CHAT)`      `bot:ratelimit:chat:-100`
        `Rule("1/s", Scope.MEMBER)`     `bot:ratelimit:member:-100:42`
        `Rule("1/s", Scope.TOPIC)`      `bot:ratelimit:topic:-100:7`
        `Rule("1000/s", Scope.GLOBAL)`  `bot:ratelimit:global`
        a callable, `name="firm"`       `bot:ratelimit:firm:custom:acme`
        `Rule("5/m sliding")`           `bot:ratelimit:sliding:42`
        `Rule("5/m bucket")`            `bot:ratelimit:bucket:42`
        ==============================  ===================================

        With a bot or a business connection, `bot:<bot>:` and `business:<connection>:` stand before
        the name. `limit` is what `limit_for` returned, so that no function is called twice.
        """
        ids = self.ids(subject)
        if ids is None:
            return None
        if type(ids) is not int and not isinstance(ids, (str, int)):
            raise ConfigError(  # its text may differ for every hit, which would limit nobody
                f"{type(ids).__name__} is not an id for {str(self)!r}: expected numbers, "
                "Subject(user=message.from_user.id); a function for a scope is not async, and "
                "returns a str, or None where the rule does not apply"
            )
        limit = limit or self.limit_for(subject)
        if limit is None:
            return None
        return f"{self.head(prefix, limit, _realm(subject))}{ids}"

    def head(self, prefix: str, limit: Limit, realm: str = "") -> str:
        """What stands before the ids in each key."""
        return f"{prefix}:ratelimit:{limit.key_part}{realm}{self.path}"

    def __str__(self) -> str:
        """The rule in logs and errors, for example `5/minute per user 'ai'`."""
        limit = self.limit if isinstance(self.limit, Limit) else f"limit by {named(self.limit)}"
        scope = self.scope.value if isinstance(self.scope, Scope) else "custom"
        return f"{limit} per {scope}" + (f" {self.name!r}" if self.name else "")


AnyRule = TypeVar("AnyRule", bound=Rule)


def set_fields(rule: Rule, **fields: Any) -> None:
    """Set fields of a rule while it is made."""
    for name, value in fields.items():
        object.__setattr__(rule, name, value)


def changed(rule: AnyRule, **fields: Any) -> AnyRule:
    """Return a copy of a rule in which some fields have other values, which are not checked."""
    set_fields(again := copy(rule), **fields)
    return again


def named(function: object) -> str:
    """The name of a function, or of the class of a callable object, for logs and errors."""
    return str(getattr(function, "__qualname__", type(function).__qualname__))


class Rules(tuple[Rule, ...]):
    """One or several rules that can be decided together, because no two of them share a key."""

    __slots__ = ()


def rules_of(value: RuleLike | Iterable[RuleLike]) -> Rules:
    """Make rules of one or several rules, limits or numbers, or of a str like `"1/s; 20/minute"`.

    The first limit has no name. Each further one that would share its key takes its own limit as
    its name.

    Raises:
        ConfigError: Nothing was given, a part is not a rule, or two rules would share a key.
    """
    if isinstance(value, Rules):
        return value
    if isinstance(value, Rule):
        return Rules((value,))
    if isinstance(value, str):
        return _rules_of_text(value)
    if isinstance(value, (Limit, int, float)) or (callable(value) and not isinstance(value, type)):
        return Rules((Rule(value),))
    if isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray, Subject)):
        return _rules_of_several(list(value))
    # Nothing is shown but the type: the text of a client may contain a password.
    raise ConfigError(
        f"{describe_type(value)} stands where the limit belongs: expected the limit first, a text "
        "such as '5/10s', a Rule, or several: RateLimitMiddleware('5/10s', redis)"
    )


@lru_cache(1024)  # `hit("5/10s", …)` is called with the same few texts again and again
def _rules_of_text(text: str) -> Rules:
    parts = [text] if "://" in text else text.split(";")  # a URL is told as such
    return _together([Rule(part.strip()) for part in parts])


def _rules_of_several(values: list[RuleLike]) -> Rules:
    numbers = [each for each in values if isinstance(each, (int, float))]
    if len(numbers) > 1:
        first, second = numbers[:2]
        raise ConfigError(
            f"{tuple(numbers)}: several numbers; for {first} events in {second} seconds write "
            f"'{first}/{second}s'"
        )
    return _together([each if isinstance(each, Rule) else Rule(each) for each in values])


def _together(rules: list[Rule]) -> Rules:
    if not rules:
        raise ConfigError("expected at least one rule, for example '1/s'")
    seen: dict[str, Rule] = {}
    for each in rules:
        rule = _named(each) if each.path in seen else each
        other = seen.setdefault(rule.path, rule)
        if other is not rule:
            raise ConfigError(
                f"the rules {str(other)!r} and {str(rule)!r} would share a key; "
                "give one of them a name, for example Rule('5/minute', name='slow')"
            )
    return Rules(seen.values())


def _named(rule: Rule) -> Rule:
    """The rule with its limit as its name, if it has neither a name nor a function."""
    if type(rule) is not Rule or rule.name or not isinstance(rule.limit, Limit):
        return rule
    name = str(rule.limit).replace(" ", "-")
    return changed(rule, name=name, path=f"{name}:{rule.path}")


def notice_rule(seconds: float, scope: Scope, about: str = "") -> Rule:
    """The rule of one notice per `seconds`, at most the longest period of a limit."""
    rule = Rule(Limit(1, min(seconds, MAX_PERIOD_MS / 1_000)), scope)
    return changed(rule, path=f"notice:{about}{rule.path}")


def notice_rules() -> list[Rule]:
    """The rules under which notices are remembered, for a reset; their periods do not matter."""
    scopes = (Scope.USER, Scope.MEMBER, Scope.CHAT)
    return [notice_rule(1, scope, about) for about in ("", "slot:") for scope in scopes]


def rule_at(path: str, limit: Limit, ids: Ids, cost: int) -> Rule:
    """Make a rule of this package with the key `<prefix>:ratelimit:<path><ids>`."""
    return changed(Rule(limit, cost=cost), path=path, ids=ids)


def _scope_of(scope: Scope | str | CustomScope) -> Scope | CustomScope:
    if isinstance(scope, Scope):
        return scope
    if callable(scope):
        return not_async("scope", scope)
    try:
        return Scope(scope)
    except ValueError:
        names = ", ".join(repr(each.value) for each in Scope)
        raise ConfigError(f"scope={scope!r}: expected one of {names}, or a Scope") from None


def _realm(subject: Subject) -> str:
    bot = "" if subject.bot is None else f"bot:{subject.bot}:"
    return bot if subject.business is None else f"{bot}business:{subject.business}:"


def _pair(first: int | None, second: int | None) -> int | str | None:
    for each in (first, second):
        if not isinstance(each, (int, str)):
            return each  # None, or what `Rule.key` refuses
    return f"{first}:{second}"

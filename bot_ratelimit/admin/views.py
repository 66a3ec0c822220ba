"""Views: what operators see, as values that each front end turns into its own texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.config.settings import Origin
from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.limiter.health import Health
from bot_ratelimit.rules.limit import MAX_AMOUNT, MAX_PERIOD_MS, Limit
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Rule, Scope
from bot_ratelimit.storage.banlist import Ban


@dataclass(frozen=True, slots=True)
class RuleView:
    """One rule in force."""

    name: str
    """See `Rule.label`."""
    limit: str | None
    """None if a function in the bot's code decides."""
    scope: str | None
    """None for a custom scope."""
    path: str
    """The part of its keys between `<prefix>:ratelimit:` and the ids."""
    cost: int
    shadow: bool
    off: bool
    where: str
    """`every handler`, or the name of the handler whose flag it is."""
    origin: Origin
    otherwise: str | None
    """The limit without the live change."""
    ban_ms: int = 0
    """The length of a penalty's ban; 0 for every other rule."""
    longest_ms: int = 0
    function: str | None = None
    """The function in the bot's code that decides, without a live limit at least."""
    is_given: bool = False
    """Whether operators gave it to a handler that has no limit of its own otherwise."""
    otherwise_shadow: bool | None = None
    """Whether the rule is a trial without the live change; None if there is no change."""

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> RuleView:
        """From the report of an instance."""
        report: dict[str, Any] = {"otherwise": None, **item, "origin": item["from"]}
        if item.get("is_given"):
            report |= {"otherwise": None, "otherwise_shadow": None}
        return cls(**{name: each for name, each in report.items() if name in cls.__slots__})

    @property
    def is_known(self) -> bool:
        """Whether its counts can be judged outside the bot: no function says who has which."""
        return self.limit is not None and self.scope is not None

    @classmethod
    def of_handler(cls, name: str) -> RuleView:
        """A handler without a limit of its own."""
        return cls(name, None, "user", f"{name}:", 1, shadow=False, off=False, where=name,
                   origin="code", otherwise=None, is_given=True)  # fmt: skip

    def rule(self) -> Rule | None:
        """The rule itself, to look at its counts; None for a custom scope."""
        if self.scope is None:
            return None
        limit = Limit.parse(self.limit) if self.limit is not None else _ANY
        rule: Rule
        if self.ban_ms:
            longest = {"grows": True, "longest": self.longest_ms / 1e3} if self.longest_ms else {}
            rule = Penalty(limit, self.ban_ms / 1e3, scope=Scope(self.scope), **longest)  # type: ignore[arg-type]  # a dict of both
        else:
            rule = Rule(limit, Scope(self.scope), cost=self.cost, shadow=self.shadow)
        object.__setattr__(rule, "name", self.name)
        object.__setattr__(rule, "path", self.path)
        return rule


@dataclass(frozen=True, slots=True)
class InstanceView:
    """A running instance of the bot, as it reported within the last 30 seconds."""

    name: str
    version: int
    """The version of the live document that it obeys."""
    rejected: int
    """How many documents it rejected as invalid."""
    problem: str
    exempt: tuple[int, ...] = ()
    per_bot: bool = False
    rules: tuple[RuleView, ...] = ()
    statistics: bool | None = None
    """Whether it counts decisions by hour; None if it does not report that."""
    handlers: tuple[str, ...] = ()
    """Handlers without a limit of their own, to which operators can give one."""

    @classmethod
    def of(cls, name: str, report: Mapping[str, Any]) -> InstanceView:
        """From the report of an instance."""
        known: dict[str, Any] = {each: report[each] for each in cls.__slots__ if each in report}
        known["rules"] = tuple(map(RuleView.of, known.get("rules", ())))
        known |= {each: tuple(known.get(each, ())) for each in ("exempt", "handlers")}
        return cls(name, **known)


@dataclass(frozen=True, slots=True)
class SettingView:
    """A setting, and where its value comes from."""

    name: str
    value: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class ConfigView:
    """What is in force, and where it comes from."""

    prefix: str
    storage: str
    settings: tuple[SettingView, ...]
    live: Overrides
    """What operators changed; of an invalid document, the last good version."""
    instances: tuple[InstanceView, ...]
    rules: tuple[RuleView, ...]
    problem: str = ""
    """Why the live document is not in force; empty if it is."""
    off_until: float = 0.0
    """Until when all limits are off, in Unix seconds; 0 if they are not."""

    @property
    def behind(self) -> int:
        """How many instances do not obey the newest version yet."""
        return sum(each.version != self.live.version for each in self.instances)

    def differing(self, instance: InstanceView) -> tuple[RuleView, ...]:
        """The rules of this instance that differ from `rules`, as during a deployment."""
        here = {each.name: _said(each) for each in self.rules}
        return tuple(each for each in instance.rules if here.get(each.name) != _said(each))


@dataclass(frozen=True, slots=True)
class CountView:
    """What a user or chat has left of one rule."""

    rule: str
    key: str
    limit: str | None
    allowed: bool
    """Whether this rule would allow one more now; says nothing if `remaining` is None."""
    remaining: int | None
    """How much more could be charged now; None where only the bot's code knows the limit."""
    capacity: int | None
    retry_after: float
    """Seconds until it allows one more; 0.0 if it does."""
    reset_after: float
    """Seconds until nothing counts any more."""


@dataclass(frozen=True, slots=True)
class SubjectView:
    """What a user or chat has left of all rules."""

    subject: dict[str, int | str]
    allowed: bool
    retry_after: float
    exempt: bool
    off_until: float
    """Until when all limits are off, in Unix seconds; 0 if they are not."""
    banned: Ban | None
    """A ban by hand or by a penalty; of several, the one that ends last. One in a business chat, if
    there is no other, which refuses nothing elsewhere."""
    refused: int | None
    """How often the user was refused in the last 24 hours; None unless the bot is known to count
    that, and for a user who is not among the 1000 who were refused most often in an hour."""
    counts: tuple[CountView, ...]
    unknown: tuple[str, ...] = ()
    """Rules for every handler that may refuse as well: a function in the bot's code decides."""


Status = Literal["healthy", "degraded", "unhealthy"]


@dataclass(frozen=True, slots=True)
class HealthView:
    """Whether limits are enforced."""

    ok: bool
    """Whether nothing is wrong; also true while all limits are off."""
    status: Status
    """`degraded` while all limits are off, or instances do not obey the newest version."""
    problem: str
    """What is wrong; empty if nothing is."""
    seconds: float
    """How long Redis took to answer."""
    version: int
    instances: int
    behind: int
    """How many instances do not obey the newest version."""
    off_until: float
    """Until when all limits are off, in Unix seconds; 0 if they are not."""
    off_by: str
    """Who switched all limits off."""
    policy: str
    """What the bot does while Redis does not answer: its `on_error`."""
    limiter: Health
    """The health of the operator's own limiter, after a test call."""

    @property
    def is_out(self) -> bool:
        """Whether Redis does not answer."""
        return not self.limiter.ok and self.limiter.source == "redis"

    @property
    def out_for(self) -> float | None:
        """Seconds since Redis stopped answering, as far as this process knows."""
        known = [each.out_for for each in self.limiter.servers if each.out_for is not None]
        return max(known, default=None)


@dataclass(frozen=True, slots=True)
class Trial:
    """Whether an update would be handled now."""

    decision: Decision | None
    """None if no limit applies."""
    exempt: bool = False
    off_until: float = 0.0
    """Until when all limits are off, in Unix seconds; 0 if they are not."""
    unknown: tuple[str, ...] = ()
    """Rules that may refuse as well: a function in the bot's code decides."""

    @property
    def allowed(self) -> bool:
        """Whether the update would be handled."""
        return self.decision is None or self.decision.allowed


@dataclass(frozen=True, slots=True)
class Version:
    """A version of the live limits."""

    live: Overrides
    changed: tuple[str, ...]
    """What differs from the version before: `messages: 5/10s -> 3/10s`."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What a change of a rule would do."""

    before: RuleView
    after: RuleView
    """All but its `origin`, which only the instances know."""
    version: int
    """Of the live document that it would change: give it as `if_version`."""
    instances: int
    """How many running instances would obey it."""


@dataclass(frozen=True, slots=True)
class RollbackPreview:
    """What a rollback would do."""

    target: Overrides
    """What would be in force again; version 0 has no changes."""
    live: Overrides
    """The newest version: give its number as `if_version`. Without changes if it is invalid."""
    is_invalid: bool
    """Whether the live document is invalid, and would be replaced."""


@dataclass(frozen=True, slots=True)
class Total:
    """The decisions of one hour or minute, over all rules and instances."""

    at: datetime
    """When it began, in UTC."""
    allowed: int = 0
    refused: int = 0
    banned: int = 0


@dataclass(frozen=True, slots=True)
class RuleUse:
    """The decisions of a rule."""

    name: str
    rule: RuleView | None
    """None if no rule in force has this name: it was renamed, or it is a ban by hand."""
    allowed: int
    """Decisions that named this rule: of those that apply, it had the least left."""
    refused: int
    banned: int
    remaining: int | None
    """What is left now of a rule that counts all users together; None for every other rule."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An action of an operator."""

    at: float
    """Unix seconds."""
    by: str
    what: str
    changed: tuple[str, ...]
    """What was different afterwards: `messages: 5/10s -> 3/10s`."""


def _said(view: RuleView) -> tuple[object, ...]:
    return view.limit, view.scope, view.cost, view.shadow, view.off, view.ban_ms, view.longest_ms


# For counts of a limit that only the bot's code knows.
_ANY = Limit(MAX_AMOUNT, MAX_PERIOD_MS / 1_000)

"""Reports: what operators read about a bot as a whole, for all front ends."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from bot_ratelimit.admin import views
from bot_ratelimit.admin.changes import PATIENCE, Audit, Changes
from bot_ratelimit.admin.sending import SendingView, sending_of
from bot_ratelimit.admin.wording import differences
from bot_ratelimit.config.live import Live, live_key
from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.config.settings import Settings
from bot_ratelimit.errors import ConfigError, RateLimitError, StorageError
from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.limiter.statistics import (
    DECISIONS,
    FLOOD,
    REQUESTS,
    HourCount,
    Refusals,
)
from bot_ratelimit.outgoing.report import SENDING
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.rule import Scope, Subject, rules_of
from bot_ratelimit.storage.banlist import Ban
from bot_ratelimit.storage.base import Count

_Counted: TypeAlias = tuple[datetime, str, str, int]


class Reports:
    """What is in force in one bot, and what its instances report; see `Control`.

    Args:
        limiter: The bot's own, or one with the same storage and prefix.
        by: Who asks; their name in the audit.
        local_inventory: Returns the rules to show if no instance reports any, see
            `RateLimitMiddleware.inventory`.
        settings: Shown by `config`.
        policy: What the bot does while Redis does not answer; the limiter's by default.
        live: What the bot in this process obeys; None if there is no bot.
        patience: See `Changes`.
    """

    def __init__(
        self,
        limiter: Limiter,
        by: str,
        *,
        local_inventory: Callable[[], dict[str, Any]] = dict,
        settings: Settings | None = None,
        policy: str | None = None,
        live: Live | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.limiter = limiter
        self.by = by
        self._local_inventory = local_inventory
        self._settings = settings
        self._documents = limiter.storage.documents()
        self._audit = Audit(self._documents, self._key("audit"), by)
        self._policy, self._live = policy, live
        self.changes = Changes(limiter, by, self._audit, self.limits, patience)

    async def config(self) -> views.ConfigView:
        """What is in force, on which instances, and where it comes from."""
        (live, problem), instances = await self.changes.in_force(), await self.instances()
        return views.ConfigView(
            self.limiter.key_prefix,
            self.limiter.storage.server([Count(self._key("live"), Limit(1, 1))]),
            tuple(_in_force(self._settings)),
            live,
            instances,
            self._rules(instances),
            problem,
            await self._off_until(live),
        )

    async def limits(self) -> tuple[views.RuleView, ...]:
        """Every rule of every middleware and flag, as the instances report them.

        While Redis cannot be reached: those that this process knows, if it is the bot.
        """
        try:
            return self._rules(await self.instances())
        except StorageError:
            if found := self._rules(()):
                return found
            raise

    async def instances(self) -> tuple[views.InstanceView, ...]:
        """The instances that follow the live limits now."""
        reports = await self._documents.reports(self._key("instances"))
        found = []
        for name, report in sorted(reports.items()):
            try:
                found.append(views.InstanceView.of(name, json.loads(report)))
            except (ValueError, LookupError, TypeError):  # of another version of this package
                found.append(views.InstanceView(name, -1, 0, "its report cannot be read"))
        return tuple(found)

    async def health(self) -> views.HealthView:
        """Whether Redis answers, whether limits are off, and which instances obey."""
        began = time.perf_counter()
        problem, live, off_until = "", Overrides(), 0.0
        instances: tuple[views.InstanceView, ...] = ()
        health = await self.limiter.check()
        try:
            instances = await self.instances()
            live = await self.changes.current()
            off_until = await self._off_until(live)
        except RateLimitError as error:
            problem = str(error)
        if self._live is not None and (problem or not live.version):
            live = self._live.overrides  # which the bot obeys until it can read the document again
            off_until = live.off_until if self._live.all_off else 0.0
        seconds = time.perf_counter() - began
        behind = sum(each.version != live.version for each in instances)
        troubled = [f"{each.name}: {each.problem}" for each in instances if each.problem]
        problem = health.problem or problem or "; ".join(troubled)
        return views.HealthView(
            not problem,
            "unhealthy" if problem else "degraded" if off_until or behind else "healthy",
            problem,
            seconds,
            live.version,
            len(instances),
            behind,
            off_until,
            live.off_by if off_until else "",
            self._policy or health.policy,
            health,
        )

    async def history(self) -> tuple[views.Version, ...]:
        """The last 20 versions, the latest first, and what each of them changed."""
        documents, rules = await self.changes.history(), await self.limits()
        earlier = [*documents[1:], *([Overrides()] if documents else [])]
        if documents and documents[-1].version > 1:  # what was before it is not known any more
            earlier[-1] = documents[-1]
        return tuple(
            views.Version(live, differences(before, live, rules))
            for live, before in zip(documents, earlier, strict=True)
        )

    async def audit(self) -> tuple[views.Entry, ...]:
        """The last 200 actions of operators, the latest first."""
        return await self._audit.entries()

    async def bans(self, offset: int = 0, limit: int = 100) -> list[Ban]:
        """Who is banned, by hand or by a penalty; one page; bans that end first come first."""
        return await self.limiter.bans(offset, limit)

    async def top(self, n: int = 10, hours: int = 24) -> tuple[Refusals, ...]:
        """The users who were refused most often in these hours."""
        return await self.limiter.top_refused(n, hours) or await self._nothing_counted()

    async def statistics(self, hours: int = 24) -> tuple[HourCount, ...]:
        """Decisions by hour, rule and outcome."""
        return await self.limiter.statistics(hours) or await self._nothing_counted()

    async def by_hour(self, hours: int = 24) -> list[views.Total]:
        """For a chart: the totals of each of these hours, also of empty ones, earliest first."""
        return _totals(await self._counted(hours), hours, timedelta(hours=1))

    async def by_minute(self) -> list[views.Total]:
        """The same for each of the last 60 minutes."""
        return _totals(await self._counted(None), 60, timedelta(minutes=1))

    async def sending(self, hours: int | None = None) -> SendingView:
        """What the bot sends, and its requests of these hours; None for the last 60 minutes."""
        limiter = self.limiter
        counted = await (limiter.last_hour() if hours is None else limiter.requests(hours))
        totals: defaultdict[str, Counter[str]] = defaultdict(Counter)
        floods = 0
        for each in counted:
            if each.outcome == FLOOD:
                floods += each.count
            elif each.outcome in REQUESTS:
                totals[each.rule][each.outcome] += each.count
        return sending_of(totals, floods, await self._documents.reports(self._key(SENDING)))

    async def use(self, hours: int | None = 24) -> tuple[views.RuleUse, ...]:
        """The number of decisions of each rule in these hours; None for the last 60 minutes."""
        totals: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for _, rule, outcome, count in await self._counted(hours):
            totals[rule][outcome] += count
        known = {view.name: view for view in await self.limits()}
        found = []
        # Also of rules that are gone, so that the sums are those of `by_hour`.
        for name in [*known, *sorted(totals.keys() - known.keys())]:
            view, total, remaining = known.get(name), totals[name], None
            if view is not None and view.scope == Scope.GLOBAL.value and not view.off:
                left = await self._count(view, Subject())
                remaining = None if left is None else left.remaining
            counts = total["allowed"], total["refused"], total["banned"]
            found.append(views.RuleUse(name, view, *counts, remaining))
        return tuple(found)

    async def rule(self, name: str) -> views.RuleView:
        """A rule, or a handler without a limit of its own, by its name."""
        instances = await self.instances()
        return rule_named(self._rules(instances), name, instances)

    # --- how --------------------------------------------------------------------------------

    async def _count(self, view: views.RuleView, subject: Subject) -> views.CountView | None:
        """What a user or chat has left of a rule, without charging; None if it does not apply."""
        rule = replace(view, shadow=False).rule()  # the answer without shadow mode
        key = None if rule is None else rule.key(self.limiter.key_prefix, subject)
        if rule is None or key is None:
            return None
        # Reads the count itself; a ban by hand would hide it.
        found = answered(await self.limiter.decider.hit(rules_of(rule), subject, peek=True))
        known = view.limit is not None
        return views.CountView(
            view.name,
            key,
            view.limit,
            found.allowed,
            found.remaining if known else None,
            rule.limit.capacity if known and isinstance(rule.limit, Limit) else None,
            found.retry_after,
            found.reset_after,
        )

    def _rules(self, instances: Iterable[views.InstanceView]) -> tuple[views.RuleView, ...]:
        reported: dict[str, views.RuleView] = {}
        for rule in (rule for each in instances for rule in each.rules):
            reported.setdefault(rule.name, rule)
        return tuple(reported.values()) or tuple(
            map(views.RuleView.of, self._local_inventory().get("rules", ()))
        )

    def _counting(self, instances: Sequence[views.InstanceView]) -> bool | None:
        """Whether any instance counts decisions; None if that is unknown."""
        said = [each.statistics for each in instances] or [
            self._local_inventory().get("statistics")
        ]
        return True if any(said) else None if None in said else False

    async def _counted(self, hours: int | None) -> list[_Counted]:
        """Decisions by time, rule and outcome, of these hours or the last 60 minutes."""
        limiter = self.limiter
        found = await (limiter.last_hour() if hours is None else limiter.statistics(hours))
        counted = [astuple(each) for each in found if each.outcome in DECISIONS]
        return counted or [*await self._nothing_counted()]

    async def _nothing_counted(self) -> tuple[()]:
        if self._counting(await self.instances()) is False:
            raise ConfigError(
                "the bot collects no statistics: pass statistics=True to RateLimitMiddleware"
            )
        return ()

    async def _off_until(self, live: Overrides) -> float:
        """Until when all limits are off; 0 if they are not."""
        if not live.off_until or live.off_until <= await self._documents.now():
            return 0.0
        return live.off_until

    def _key(self, name: str) -> str:
        return live_key(self.limiter.key_prefix, name)


def _in_force(settings: Settings | None) -> Iterable[views.SettingView]:
    """All settings and where they come from; secrets are not shown."""
    if settings is None:
        return
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if name == "rate_limit":
            value = "; ".join(map(str, settings.rules()))
        elif name == "rate_limit_exempt":
            value = ", ".join(map(str, sorted(settings.exempt())))
        elif "SecretStr" in str(field.annotation):
            value = None if value is None else "(not shown)"
        yield views.SettingView(
            name.upper(), "" if value is None else str(value), settings.origin(name)
        )


def _totals(counted: Iterable[_Counted], number: int, unit: timedelta) -> list[views.Total]:
    """Allowed, refused and banned in each of the last so many hours or minutes."""
    now = datetime.now(UTC)
    now -= (now - datetime(1970, 1, 1, tzinfo=UTC)) % unit
    totals = {now - n * unit: Counter[str]() for n in range(number)}
    for at, _, outcome, count in counted:
        totals.setdefault(at, Counter())[outcome] += count
    return [
        views.Total(at, found["allowed"], found["refused"], found["banned"])
        for at, found in sorted(totals.items())
    ]


def rule_named(
    rules: Iterable[views.RuleView], name: str, instances: Sequence[views.InstanceView]
) -> views.RuleView:
    """The rule, or the handler without a limit of its own. ConfigError if there is none."""
    if any(name in each.handlers for each in instances):
        return views.RuleView.of_handler(name)
    known = {rule.name: rule for rule in rules}
    if name in known:
        return known[name]
    expected = ", ".join(sorted(known)) or "nothing: no bot with live=True reports its rules"
    error = f"no rule is called {name!r}: expected one of {expected}"
    if not instances:  # they report again within seconds after Redis was emptied
        error += (
            "; no running bot reports its rules now: if one runs with live=True, repeat it in a "
            "few seconds"
        )
    raise ConfigError(error)


def answered(decision: Decision) -> Decision:
    """The decision; StorageError if only the policy has answered, not the storage."""
    if decision.source == "policy":
        raise StorageError("Redis cannot be reached; for details: `bot-ratelimit health`")
    return decision

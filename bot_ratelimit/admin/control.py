"""Control: everything that operators can do, implemented once for all front ends."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from bot_ratelimit.admin.changes import PATIENCE, Audit, Changes, altered
from bot_ratelimit.admin.subject_state import answered, ban_of, count_of, seconds_left
from bot_ratelimit.admin.views import (
    ConfigView,
    Entry,
    HealthView,
    HourTotal,
    InstanceView,
    MinuteTotal,
    Preview,
    RuleUse,
    RuleView,
    SendingView,
    SubjectView,
    Trial,
    Version,
    merged,
    named,
    sending_of,
    settings_in_force,
)
from bot_ratelimit.admin.wording import ENGLISH, as_changed, ban_words, differences, who
from bot_ratelimit.admin.words import plain
from bot_ratelimit.config.live import Live, live_key
from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.config.report import EVERYWHERE, report_of
from bot_ratelimit.config.settings import Origin, Settings
from bot_ratelimit.errors import ConfigError, RateLimitError, StorageError
from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.limiter.statistics import (
    DECISIONS,
    FLOOD,
    REQUESTS,
    HourCount,
    MinuteCount,
    Refusals,
)
from bot_ratelimit.outgoing.report import SENDING
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Rule, Scope, Subject, notice_rules, rules_of
from bot_ratelimit.storage.banlist import Ban
from bot_ratelimit.storage.base import Count, documents_of

if TYPE_CHECKING:
    from bot_ratelimit.incoming.middleware import RateLimitMiddleware

LOGINS: Final = "{login}:"
"""What keys of logins begin with. In braces, which no rule's name has, and which keep the keys on
one node of a Redis Cluster."""

# Without the keys of logins, all sessions of the page would end, and guessing would go on.
_KEPT: Final = ("live", "history", "audit", "instances", LOGINS)


class Control:
    """What operators can do with the limits of one bot, on all its instances at once.

    All methods raise StorageError if Redis cannot be reached, and ConfigError if something in the
    request is wrong, or the bot lacks an option, such as `statistics=True`.

    Args:
        limiter: The bot's own, or one with the same storage and prefix.
        by: Who acts; their name in the audit.
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
        self._documents = documents_of(limiter.storage)
        self._audit = Audit(self._documents, self._key("audit"), by)
        self._policy, self._live = policy, live
        self.changes = Changes(limiter, by, self._audit, self.limits, patience)

    @classmethod
    def of(cls, middleware: RateLimitMiddleware, by: str, **options: Any) -> Control:
        """Control over the bot in this process, and its other instances."""
        options |= {"local_inventory": middleware.inventory, "live": middleware.live}
        return cls(middleware.limiter, by, **options)

    @classmethod
    def from_settings(cls, settings: Settings, by: str, **options: Any) -> Control:
        """Control from outside, with the settings of the bot."""
        limiter = Limiter(
            settings.storage(),
            key_prefix=settings.redis_key_prefix,
            timeout=max(2.0, settings.rate_limit_timeout),
            statistics=True,  # to read those that the bot writes, if it does
        )
        origin = settings.origin("rate_limit")
        rules: list[tuple[Rule, Origin]] = [(each, origin) for each in rules_of(settings.rules())]
        if settings.file.penalty is not None:
            rules.append((settings.file.penalty, "file"))

        def local_inventory() -> dict[str, Any]:
            found = [report_of(rule, Overrides(), EVERYWHERE, whence) for rule, whence in rules]
            return {"rules": found, "exempt": sorted(settings.exempt())}

        options.setdefault("policy", settings.rate_limit_on_error)
        return cls(limiter, by, local_inventory=local_inventory, settings=settings, **options)

    # --- reading ----------------------------------------------------------------------------

    async def config(self) -> ConfigView:
        """What is in force, on which instances, and where it comes from."""
        (live, problem), instances = await self.changes.in_force(), await self.instances()
        return ConfigView(
            self.limiter.key_prefix,
            self.limiter.storage.server([Count(self._key("live"), Limit(1, 1))]),
            tuple(settings_in_force(self._settings)),
            live,
            instances,
            self._rules(instances),
            problem,
            await self._off_until(live),
        )

    async def limits(self) -> tuple[RuleView, ...]:
        """Every rule of every middleware and flag, as the instances report them.

        While Redis cannot be reached: those that this process knows, if it is the bot.
        """
        try:
            return self._rules(await self.instances())
        except StorageError:
            if found := self._rules(()):
                return found
            raise

    async def instances(self) -> tuple[InstanceView, ...]:
        """The instances that follow the live limits now."""
        reports = await self._documents.reports(self._key("instances"))
        found = []
        for name, report in sorted(reports.items()):
            try:
                found.append(InstanceView.of(name, json.loads(report)))
            except (ValueError, LookupError, TypeError):  # of another version of this package
                found.append(InstanceView(name, -1, 0, "its report cannot be read"))
        return tuple(found)

    async def show(self, subject: Subject) -> SubjectView:
        """What a user or chat has left of every rule; charges nothing."""
        seen = await self.config()
        self._check_subject(subject, seen.instances)
        counts = await asyncio.gather(
            *(count_of(self.limiter, view, subject) for view in seen.rules if not view.off)
        )
        found = [each for each in counts if each is not None]
        general = {view.name for view in seen.rules if view.where == EVERYWHERE and not view.shadow}
        waits = [each.retry_after for each in found if each.rule in general]
        now = await self._documents.now()
        ban = await ban_of(self.limiter, subject, seen.rules, found, now)
        if ban is not None:
            waits.append(seconds_left(ban, now))
        exempt = self._is_exempt(subject, seen)
        free = exempt or seen.is_paused
        return SubjectView(
            {name: each for name, each in subject._asdict().items() if each is not None},
            free or not any(waits),
            0.0 if free else max(waits, default=0.0),
            exempt,
            seen.off_until,
            ban,
            await self._refused(subject, seen.instances),
            tuple(found),
        )

    async def try_(self, subject: Subject, name: str | None = None) -> Trial:
        """Whether an update would be handled now, without charging.

        Args:
            subject: Who would send the update.
            name: The name of a handler's own limit, instead of the rules for every handler.
        """
        seen = await self.config()
        self._check_subject(subject, seen.instances)
        if name is not None:
            _named(seen.rules, name, seen.instances)
        if self._is_exempt(subject, seen):
            return Trial(None, exempt=True)
        if seen.is_paused:
            return Trial(None, off_until=seen.off_until)
        chosen = [
            view
            for view in seen.rules
            if (view.ban_ms or (view.where == EVERYWHERE if name is None else view.name == name))
        ]
        found = [view.rule() for view in chosen if not view.off and view.limit is not None]
        rules = [rule for rule in found if rule is not None]
        decision = await self._peeked(rules, subject)
        if decision is not None and decision.allowed and isinstance(decision.rule, Penalty):
            # It limits nobody who is not refused already.
            rules = [rule for rule in rules if not isinstance(rule, Penalty)]
            decision = await self._peeked(rules, subject)
        return Trial(decision)

    async def health(self) -> HealthView:
        """Whether Redis answers, whether limits are off, and which instances obey."""
        began = time.perf_counter()
        problem, live, off_until = "", Overrides(), 0.0
        instances: tuple[InstanceView, ...] = ()
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
        return HealthView(
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

    async def history(self) -> tuple[Version, ...]:
        """The last 20 versions, the latest first, and what each of them changed."""
        documents, rules = await self.changes.history(), await self.limits()
        earlier = [*documents[1:], *([Overrides()] if documents else [])]
        if documents and documents[-1].version > 1:  # what was before it is not known any more
            earlier[-1] = documents[-1]
        return tuple(
            Version(live, differences(before, live, rules))
            for live, before in zip(documents, earlier, strict=True)
        )

    async def audit(self) -> tuple[Entry, ...]:
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

    async def last_hour(self) -> tuple[MinuteCount, ...]:
        """Decisions of the last 60 minutes, by minute, rule and outcome."""
        found = await self.limiter.last_hour()
        return tuple(each for each in found if each.outcome in DECISIONS) or (
            await self._nothing_counted()
        )

    async def by_hour(self, hours: int = 24) -> tuple[HourTotal, ...]:
        """For a chart: the totals of each of these hours, also of empty ones, earliest first."""
        counted = [(each.hour, each.outcome, each.count) for each in await self.statistics(hours)]
        return tuple(HourTotal(*each) for each in _totals(counted, hours, timedelta(hours=1)))

    async def by_minute(self) -> tuple[MinuteTotal, ...]:
        """The same for each of the last 60 minutes."""
        counted = [(each.minute, each.outcome, each.count) for each in await self.last_hour()]
        return tuple(MinuteTotal(*each) for each in _totals(counted, 60, timedelta(minutes=1)))

    async def sending(self, hours: int | None = None) -> SendingView:
        """What the bot sends, as the instances report it.

        Args:
            hours: The hours whose requests are counted; None for the last 60 minutes.
        """
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

    async def use(self, hours: int | None = 24) -> tuple[RuleUse, ...]:
        """The number of decisions of each rule in these hours; None for the last 60 minutes."""
        totals: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for each in await (self.last_hour() if hours is None else self.statistics(hours)):
            totals[each.rule][each.outcome] += each.count
        views = {view.name: view for view in await self.limits()}
        found = []
        # Also of rules that are gone, so that the sums are those of `by_hour`.
        for name in [*views, *sorted(totals.keys() - views.keys())]:
            view, total, remaining = views.get(name), totals[name], None
            if view is not None and view.scope == Scope.GLOBAL.value and not view.off:
                count = await count_of(self.limiter, view, Subject())
                remaining = None if count is None else count.remaining
            found.append(RuleUse(name, view, total["allowed"], total["refused"], total["banned"],
                                 remaining))  # fmt: skip
        return tuple(found)

    # --- users ------------------------------------------------------------------------------

    async def forgive(self, subject: Subject, names: Iterable[str] = ()) -> tuple[str, ...]:
        """Delete the counts of a user or chat; returns the names of the rules that had counts.

        A ban by a penalty is lifted on every instance at once. A ban by hand stays: see `unban`.

        Args:
            subject: The user or chat. Rules that count all users together are not changed.
            names: The rules; by default all.
        """
        instances = await self.instances()
        views = self._rules(instances)
        self._check_subject(subject, instances)
        chosen = [_named(views, name, instances) for name in names] or views
        forgotten = []
        for view in chosen:
            rule = view.rule()
            if rule is None or rule.scope is Scope.GLOBAL:
                continue
            if rule.key(self.limiter.key_prefix, subject) is None:
                continue
            if await self.limiter.reset(rule, subject):
                forgotten.append(view.name)
        await self.limiter.reset(notice_rules(), subject)
        await self._note("forgive", subject, [f"counts deleted: {', '.join(forgotten)}"])
        return tuple(forgotten)

    async def ban(
        self, subject: Subject, how_long: float | str | None = None, reason: str = ""
    ) -> Ban:
        """Refuse everything from a user, a chat or a user in a chat, on every instance.

        Args:
            subject: The user or chat. With a chat, a user is banned in that chat only.
            how_long: Seconds or a text such as `"1h"`; None or `"forever"` for a ban without end.
            reason: Why, for the other operators.
        """
        length = None if how_long == "forever" else how_long
        before = [ban for ban in await self.limiter.bans_of(subject) if ban.subject == subject]
        done = await self.limiter.ban(subject, length, reason, self.by)
        await self._note("ban", subject, [f"{_bans(before)} -> {_bans([done])}"])
        return done

    async def unban(self, subject: Subject) -> bool:
        """Lift every ban of exactly this subject, by hand or penalty; whether there was one."""
        before = [ban for ban in await self.limiter.bans_of(subject) if ban.subject == subject]
        done = await self.limiter.unban(subject)
        changed = f"{_bans(before) if before else 'banned'} -> not banned"
        await self._note("unban", subject, [changed] if done else [])
        return done

    async def clear(self, *, everything: bool = False) -> int:
        """Delete every count under the prefix, in batches; returns the number of keys.

        Args:
            everything: Also delete the live limits, their history, the audit, and the sessions
                of the page. Running instances write the live limits back: use `rollback(0)` to drop
                them.
        """
        keep = () if everything else [self._key(name) for name in _KEPT]
        found = await self._documents.clear(f"{self.limiter.key_prefix}:ratelimit:", keep)
        await self._audit.note(
            "clear everything" if everything else "clear", [f"keys deleted: {found}"]
        )
        return found

    # --- live limits, see `Changes` for the rest ----------------------------------------------

    async def set_rule(
        self, name: str, limit: str | None = None, *, if_version: int | None = None, **change: Any
    ) -> Overrides:
        """Change a rule on every instance, or a handler without a limit of its own, by its name.

        Args:
            name: The rule.
            limit: A limit such as `2/minute`.
            if_version: The version that the operator has seen.
            **change: See `altered`: `shadow`, `off`, `default`.
        """
        view = await self.rule(name)
        return await self.changes.set_rule(view, if_version=if_version, limit=limit, **change)

    async def rule(self, name: str) -> RuleView:
        """A rule, or a handler without a limit of its own, by its name."""
        instances = await self.instances()
        return _named(self._rules(instances), name, instances)

    async def preview(self, name: str, limit: str | None = None, **change: Any) -> Preview:
        """What `set_rule` would do; changes nothing."""
        instances, live = await self.instances(), await self.changes.current()
        view = _named(self._rules(instances), name, instances)
        after = as_changed(view, altered(live, view, limit, **change))
        after = replace(
            after, **({"otherwise": None} if change.get("default") else {"origin": "live"})
        )
        return Preview(as_changed(view, live), after, live.version, len(instances))

    async def wait_for(self, version: int, seconds: float = 6.0) -> tuple[InstanceView, ...]:
        """Wait until every instance obeys this version, or these seconds; returns the instances."""
        until = time.monotonic() + seconds
        while True:
            instances = await self.instances()
            if all(each.version >= version for each in instances) or time.monotonic() > until:
                return instances
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        """Close the limiter."""
        await self.limiter.close()

    # --- how --------------------------------------------------------------------------------

    async def _peeked(self, rules: Sequence[Rule], subject: Subject) -> Decision | None:
        return answered(await self.limiter.peek(rules, subject)) if rules else None

    def _rules(self, instances: Iterable[InstanceView]) -> tuple[RuleView, ...]:
        reported = merged(rule for each in instances for rule in each.rules)
        return reported or tuple(map(RuleView.of, self._local_inventory().get("rules", ())))

    async def _refused(self, subject: Subject, instances: Sequence[InstanceView]) -> int | None:
        if subject.user is None or not self.limiter.keeps_statistics:
            return None
        found = await self.limiter.refused(subject.user)
        return found or (None if self._counting(instances) is False else found)

    def _counting(self, instances: Sequence[InstanceView]) -> bool | None:
        """Whether any instance counts decisions; None if that is unknown."""
        said = [each.statistics for each in instances] or [
            self._local_inventory().get("statistics")
        ]
        return True if any(said) else None if None in said else False

    async def _nothing_counted(self) -> tuple[()]:
        if self._counting(await self.instances()) is False:
            raise ConfigError(
                "the bot collects no statistics: pass statistics=True to RateLimitMiddleware"
            )
        return ()

    def _is_exempt(self, subject: Subject, seen: ConfigView) -> bool:
        ids = {subject.user, subject.chat} - {None}
        elsewhere = {each for instance in seen.instances for each in instance.exempt}
        if not seen.instances:
            elsewhere.update(self._local_inventory().get("exempt", ()))
        return not ids.isdisjoint((elsewhere | seen.live.exempt) - seen.live.limited)

    def _check_subject(self, subject: Subject, instances: Iterable[InstanceView]) -> None:
        if subject.bot is None and any(each.per_bot for each in instances):
            raise ConfigError("each bot counts for itself (per_bot=True): name the bot's id")

    async def _off_until(self, live: Overrides) -> float:
        """Until when all limits are off; 0 if they are not."""
        if not live.off_until or live.off_until <= await self._documents.now():
            return 0.0
        return live.off_until

    async def _note(self, what: str, subject: Subject, changed: Iterable[str]) -> None:
        await self._audit.note(f"{what} {plain(who(ENGLISH, subject))}", changed)

    def _key(self, name: str) -> str:
        return live_key(self.limiter.key_prefix, name)


def _totals(
    counted: Iterable[tuple[datetime, str, int]], number: int, unit: timedelta
) -> Iterator[tuple[datetime, int, int, int]]:
    """Allowed, refused and banned in each of the last so many hours or minutes."""
    now = datetime.now(UTC)
    now -= (now - datetime(1970, 1, 1, tzinfo=UTC)) % unit
    totals = {now - n * unit: Counter[str]() for n in range(number)}
    for at, outcome, count in counted:
        totals.setdefault(at, Counter())[outcome] += count
    for at, found in sorted(totals.items()):
        yield at, found["allowed"], found["refused"], found["banned"]


def _bans(bans: Sequence[Ban]) -> str:
    return "; ".join(plain(ban_words(ENGLISH, each)) for each in bans) or "not banned"


def _named(rules: Iterable[RuleView], name: str, instances: Sequence[InstanceView]) -> RuleView:
    if any(name in each.handlers for each in instances):
        return RuleView.of_handler(name)
    try:
        return named(rules, name)
    except ConfigError as error:
        if instances:
            raise
        # They report again within seconds after Redis was emptied.
        raise ConfigError(
            f"{error}; no running bot reports its rules now: if one runs with live=True, repeat "
            "it in a few seconds"
        ) from None

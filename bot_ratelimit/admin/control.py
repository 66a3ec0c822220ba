"""Control: everything that operators can do, implemented once for all front ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from bot_ratelimit.admin.changes import altered
from bot_ratelimit.admin.reports import Reports, answered, rule_named
from bot_ratelimit.admin.views import (
    ConfigView,
    CountView,
    InstanceView,
    Preview,
    RuleView,
    SubjectView,
    Trial,
)
from bot_ratelimit.admin.wording import ENGLISH, as_changed, ban_words, who
from bot_ratelimit.admin.words import plain
from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.config.report import EVERYWHERE, report_of
from bot_ratelimit.config.settings import Origin, Settings
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limiter.arguments import FOREVER
from bot_ratelimit.limiter.decision import NO_LIMIT
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.rules.rule import Rule, Scope, Subject, notice_rules, rules_of
from bot_ratelimit.storage.banlist import Ban

if TYPE_CHECKING:
    from bot_ratelimit.incoming.middleware import RateLimitMiddleware

LOGINS: Final = "{login}:"
"""What keys of logins begin with. In braces, which no rule's name has, and which keep the keys on
one node of a Redis Cluster."""

# Without the keys of logins, all sessions of the page would end, and guessing would go on.
_KEPT: Final = ("live", "history", "audit", "instances", LOGINS)
_WAITING: Final = "collect:"  # messages of users that are not handled yet


class Control(Reports):
    """What operators can do with the limits of one bot, on all its instances at once.

    All methods raise StorageError if Redis cannot be reached, and ConfigError if something in the
    request is wrong, or the bot lacks an option, such as `statistics=True`.
    """

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

    # --- users ------------------------------------------------------------------------------

    async def show(self, subject: Subject) -> SubjectView:
        """What a user or chat has left of every rule; charges nothing."""
        seen = await self.config()
        self._check_subject(subject, seen.instances)
        counts = await asyncio.gather(
            *(self._count(view, subject) for view in seen.rules if not view.off)
        )
        found = [each for each in counts if each is not None]
        general = {view.name for view in seen.rules if view.where == EVERYWHERE and not view.shadow}
        waits = [each.retry_after for each in found if each.rule in general]
        now = await self._documents.now()
        ban = await _ban_of(self.limiter, subject, seen.rules, found, now)
        if ban is not None:
            waits.append(_seconds_left(ban, now))
        else:  # in a business chat, which refuses nothing here
            ban = next(iter(await self._bans_in_business(subject)), None)
        exempt = self._is_exempt(subject, seen)
        free = exempt or bool(seen.off_until)
        return SubjectView(
            {name: each for name, each in subject._asdict().items() if each is not None},
            free or not any(waits),
            0.0 if free else max(waits, default=0.0),
            exempt,
            seen.off_until,
            ban,
            await self._refused(subject, seen.instances),
            tuple(found),
            _unknown(view for view in seen.rules if view.name in general),
        )

    async def try_(self, subject: Subject, name: str | None = None) -> Trial:
        """Whether an update would be handled now, without charging.

        With `name`, by a handler's own limit instead of the rules for every handler.
        """
        seen = await self.config()
        self._check_subject(subject, seen.instances)
        if name is not None:
            rule_named(seen.rules, name, seen.instances)
        if self._is_exempt(subject, seen):
            return Trial(None, exempt=True)
        if seen.off_until:
            return Trial(None, off_until=seen.off_until)
        chosen = [
            view
            for view in seen.rules
            if (view.ban_ms or (view.where == EVERYWHERE if name is None else view.name == name))
        ]
        found = [view.rule() for view in chosen if not view.off and view.is_known]
        rules = [rule for rule in found if rule is not None]
        unknown = _unknown(chosen)
        decision = answered(await self.limiter.peek(rules or NO_LIMIT, subject))
        # A penalty limits nobody who is not refused already.
        is_free = decision.allowed and not decision.rule.tells_left
        is_free = is_free or decision.source == "none"
        return Trial(None if is_free else decision, unknown=unknown)

    async def forgive(self, subject: Subject, names: Iterable[str] = ()) -> tuple[str, ...]:
        """Delete the counts of a user or chat; returns the names of the rules that had counts.

        Without names, of all rules but those that count all users together. A ban by a penalty is
        lifted on every instance at once, also one in a business chat, whose counts are deleted too.
        A ban by hand stays: see `unban`.
        """
        instances = await self.instances()
        views = self._rules(instances)
        self._check_subject(subject, instances)
        chosen = [rule_named(views, name, instances) for name in names] or views
        connections = {ban.subject.business for ban in await self._bans_in_business(subject)}
        subjects = [subject, *(subject._replace(business=each) for each in connections)]
        forgotten = []
        for view in chosen:
            rule = view.rule()
            if rule is None or rule.scope is Scope.GLOBAL:
                continue
            if rule.key(self.limiter.key_prefix, subject) is None:
                continue
            if any([await self.limiter.reset(rule, each) for each in subjects]):
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
        """Lift every ban of exactly this subject, by hand or penalty; whether there was one.

        With a user, also those in business chats, among the first 1,000 bans of the list.
        """
        before = await self.bans_to_lift(subject)
        subjects = {subject, *(ban.subject for ban in before)}
        done = any([await self.limiter.unban(each) for each in subjects])
        changed = f"{_bans(before) if before else 'banned'} -> not banned"
        await self._note("unban", subject, [changed] if done else [])
        return done

    async def bans_to_lift(self, subject: Subject) -> list[Ban]:
        """The bans that `unban` lifts."""
        found = [ban for ban in await self.limiter.bans_of(subject) if ban.subject == subject]
        return [*found, *await self._bans_in_business(subject)]

    async def clear(self, *, everything: bool = False) -> int:
        """Delete every count under the prefix, in batches; returns the number of keys.

        Args:
            everything: Also delete the live limits, their history, the audit, and the sessions
                of the page. Running instances write the live limits back: use `rollback(0)` to drop
                them.
        """
        keep = [self._key(name) for name in (_WAITING, *(() if everything else _KEPT))]
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

        It may change its `limit`, `shadow` and `off`, or undo all that with `default`.
        """
        view = await self.rule(name)
        return await self.changes.set_rule(view, if_version=if_version, limit=limit, **change)

    async def preview(self, name: str, limit: str | None = None, **change: Any) -> Preview:
        """What `set_rule` would do; changes nothing."""
        instances, live = await self.instances(), await self.changes.current()
        view = rule_named(self._rules(instances), name, instances)
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

    async def _bans_in_business(self, subject: Subject) -> list[Ban]:
        """The bans of a user in business chats, among the first 1,000 of the list.

        Only the list knows the connections. The page asks every two seconds, so once has to do.
        """
        if subject.user is None or subject.chat not in (None, subject.user):
            return []
        return [
            ban
            for ban in await self.limiter.bans(0, 1_000)
            if ban.subject.business
            and ban.subject.bot == subject.bot
            and subject.user == (ban.subject.user or ban.subject.chat)
        ]

    async def _refused(self, subject: Subject, instances: Sequence[InstanceView]) -> int | None:
        if subject.user is None or not self.limiter.keeps_statistics:
            return None
        found = await self.limiter.refused(subject.user)
        return found or (found if self._counting(instances) else None)

    def _is_exempt(self, subject: Subject, seen: ConfigView) -> bool:
        ids = {subject.user, subject.chat} - {None}
        elsewhere = {each for instance in seen.instances for each in instance.exempt}
        if not seen.instances:
            elsewhere.update(self._local_inventory().get("exempt", ()))
        return not ids.isdisjoint((elsewhere | seen.live.exempt) - seen.live.limited)

    def _check_subject(self, subject: Subject, instances: Iterable[InstanceView]) -> None:
        if subject.bot is None and any(each.per_bot for each in instances):
            raise ConfigError("each bot counts for itself (per_bot=True): name the bot's id")

    async def _note(self, what: str, subject: Subject, changed: Iterable[str]) -> None:
        await self._audit.note(f"{what} {plain(who(ENGLISH, subject))}", changed)


def _unknown(rules: Iterable[RuleView]) -> tuple[str, ...]:
    """Those that may refuse, but only the bot knows."""
    return tuple(each.name for each in rules if not (each.is_known or each.off or each.shadow))


def _bans(bans: Sequence[Ban]) -> str:
    return "; ".join(plain(ban_words(ENGLISH, each)) for each in bans) or "not banned"


async def _ban_of(
    limiter: Limiter,
    subject: Subject,
    rules: Iterable[RuleView],
    counts: Iterable[CountView],
    now: float,
) -> Ban | None:
    """The ban of a user or chat that ends last; None if there is no ban."""
    if subject.user is None and subject.chat is None:
        return None
    refusing = {each.key: each for each in counts if not each.allowed}
    for ban in await limiter.bans_of(subject):
        if not ban.key or ban.key in refusing:  # else the penalty is off
            return ban
    # A ban by a penalty that is not on the list yet, or for which the list has no room.
    lengths = {view.name: view.ban_ms / 1e3 for view in rules if view.ban_ms}
    for each in refusing.values():
        if each.rule in lengths:
            until = datetime.fromtimestamp(now + each.retry_after, UTC)
            began = until - timedelta(seconds=lengths[each.rule])
            since = min(began, datetime.fromtimestamp(now, UTC))  # a ban that grows is longer
            return Ban(subject, since, until, f"more than {each.limit}", "penalty", each.key)
    return None


def _seconds_left(ban: Ban, now: float) -> float:
    """How long a ban still lasts."""
    return FOREVER if ban.until is None else max(0.0, ban.until.timestamp() - now)

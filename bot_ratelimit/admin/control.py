"""Control: everything that operators can do, each once, for every front end."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from bot_ratelimit.admin.changes import PATIENCE, Audit, Changes
from bot_ratelimit.admin.views import (
    ConfigView,
    CountView,
    Entry,
    HealthView,
    InstanceView,
    RuleView,
    SettingView,
    SubjectView,
    merged,
    named,
)
from bot_ratelimit.decision import Decision
from bot_ratelimit.errors import ConfigError, RateLimitError, StorageError
from bot_ratelimit.incoming.flags import Flags
from bot_ratelimit.incoming.inventory import EVERYWHERE, inventory
from bot_ratelimit.incoming.middleware import RateLimitMiddleware
from bot_ratelimit.limit import Limit
from bot_ratelimit.limiter import Limiter
from bot_ratelimit.live import live_key
from bot_ratelimit.overrides import Overrides
from bot_ratelimit.rule import Scope, Subject, notice_rule, rules_of
from bot_ratelimit.settings import Origin, Settings
from bot_ratelimit.storage.base import Charge
from bot_ratelimit.storage.documents import documents_of

_KEPT: Final = ("live", "history", "audit", "instances")


class Control:
    """What operators can do with the limits of one bot, on all its instances at once.

    Args:
        limiter: The bot's own, or one with the same storage and prefix.
        by: Who acts, as the audit will say.
        told: What is known of the rules where no instance reports them, see
            `RateLimitMiddleware.inventory`.
        settings: Shown by `config`.
        patience: See `Changes`.
    """

    def __init__(
        self,
        limiter: Limiter,
        by: str,
        *,
        told: Callable[[], dict[str, Any]] = dict,
        settings: Settings | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.limiter = limiter
        self.by = by
        self._told = told
        self._settings = settings
        self._documents = documents_of(limiter.storage)
        self._audit = Audit(self._documents, self._key("audit"), by)
        self.changes = Changes(limiter, by, self._audit, patience)

    @classmethod
    def of(cls, middleware: RateLimitMiddleware, by: str, **options: Any) -> Control:
        """Control over the bot in this process, and its other instances."""
        return cls(middleware.limiter, by, told=middleware.inventory, **options)

    @classmethod
    def from_settings(cls, settings: Settings, by: str, **options: Any) -> Control:
        """Control from outside, with the settings of the bot."""
        limiter = Limiter(
            settings.storage(),
            key_prefix=settings.redis_key_prefix,
            timeout=max(2.0, settings.rate_limit_timeout),
            statistics=True,  # to read those that the bot writes, if it does
        )
        rules = rules_of([*settings.rules(), *filter(None, [settings.file.penalty])])
        origins: dict[str, Origin] = {
            "limits": settings.origin("rate_limit"),
            "penalty": "file",
        }

        def told() -> dict[str, Any]:
            found = inventory(Overrides(), rules, origins, Flags(), ())
            return {"rules": found, "exempt": sorted(settings.exempt())}

        return cls(limiter, by, told=told, settings=settings, **options)

    # --- looking ----------------------------------------------------------------------------

    async def config(self) -> ConfigView:
        """What holds, on which instances, and what decided it."""
        live, instances = await self.changes.current(), await self.instances()
        return ConfigView(
            self.limiter.key_prefix,
            self.limiter.storage.server([Charge(self._key("live"), Limit(1, 1))]),
            tuple(_settings(self._settings)),
            live,
            instances,
            await self._rules(instances),
        )

    async def limits(self) -> tuple[RuleView, ...]:
        """Every rule of every middleware and flag, as the instances report them."""
        return await self._rules(await self.instances())

    async def instances(self) -> tuple[InstanceView, ...]:
        """The instances that follow the live limits now."""
        told = await self._documents.reports(self._key("instances"))
        found = []
        for name, report in sorted(told.items()):
            try:
                found.append(InstanceView.of(name, json.loads(report)))
            except (ValueError, LookupError, TypeError):  # of another version of this package
                found.append(InstanceView(name, -1, 0, "its report cannot be read"))
        return tuple(found)

    async def show(self, subject: Subject) -> SubjectView:
        """Where somebody stands with every rule; charges nothing."""
        instances = await self.instances()
        live, rules = await self.changes.current(), await self._rules(instances)
        self._check_subject(subject, instances)
        counts = [await self._count(view, subject) for view in rules if not view.off]
        found = [each for each in counts if each is not None]
        general = {view.name for view in rules if view.where == EVERYWHERE and not view.shadow}
        waits = [each.retry_after for each in found if each.rule in general]
        ban = await self._ban_of(subject)
        now = await self._documents.now()
        off_until = live.off_until if live.off_until > now else 0.0
        exempt = self._is_exempt(subject, live, instances)
        free = exempt or off_until > 0
        return SubjectView(
            {name: each for name, each in subject._asdict().items() if each is not None},
            free or (not any(waits) and ban is None),
            0.0 if free else max(waits, default=0.0),
            exempt,
            off_until,
            ban,
            await self._refused(subject),
            tuple(found),
        )

    async def try_(self, subject: Subject, name: str | None = None) -> Decision | None:
        """What an update would be decided now, charging nothing; None if it is not limited.

        Args:
            subject: Who would send it.
            name: The name of a handler's own limit, instead of what holds for every handler.
        """
        instances = await self.instances()
        live, views = await self.changes.current(), await self._rules(instances)
        self._check_subject(subject, instances)
        if name is not None:
            named(views, name)
        if self._is_exempt(subject, live, instances):
            return None
        if live.off_until > await self._documents.now():
            return None
        chosen = [
            view
            for view in views
            if (view.ban_ms or (view.where == EVERYWHERE if name is None else view.name == name))
        ]
        found = [view.rule() for view in chosen if not view.off and view.limit is not None]
        rules = [rule for rule in found if rule is not None]
        return _answered(await self.limiter.peek(rules, subject)) if rules else None

    async def health(self) -> HealthView:
        """Whether Redis answers, and which instances obey the newest version."""
        began = time.perf_counter()
        version, problem = 0, ""
        instances: tuple[InstanceView, ...] = ()
        try:
            check = getattr(self.limiter, "check", None)
            if check is not None:
                problem = (await check()).problem
            await self._documents.now()
            instances = await self.instances()
            version = (await self.changes.current()).version
        except RateLimitError as error:
            problem = problem or str(error)
        seconds = time.perf_counter() - began
        behind = sum(each.version != version for each in instances)
        troubled = [f"{each.name}: {each.problem}" for each in instances if each.problem]
        problem = problem or "; ".join(troubled)
        return HealthView(not problem, problem, seconds, version, len(instances), behind)

    async def audit(self) -> tuple[Entry, ...]:
        """The last 200 changes, the latest first."""
        return await self._audit.entries()

    async def bans(self) -> Any:
        """Who is banned by an operator."""
        return await self._available("bans")()

    async def top(self, n: int = 10) -> Any:
        """Who was refused most in the last 24 hours."""
        return await self._available("top_refused")(n)

    async def statistics(self, hours: int = 24) -> Any:
        """Decisions by hour, rule and outcome."""
        return await self._available("statistics")(hours=hours)

    # --- users ------------------------------------------------------------------------------

    async def forgive(self, subject: Subject, names: Iterable[str] = ()) -> tuple[str, ...]:
        """Forget what somebody was charged; the names of the rules where there was something.

        Args:
            subject: Who. What counts everybody together is not touched.
            names: Of which rules; of all unless given.
        """
        instances = await self.instances()
        views = await self._rules(instances)
        self._check_subject(subject, instances)
        chosen = [named(views, name) for name in names] or views
        forgotten = []
        for view in chosen:
            rule = view.rule()
            if rule is None or rule.scope is Scope.GLOBAL:
                continue
            if rule.key(self.limiter.key_prefix, subject) is None:
                continue
            if await self.limiter.reset(rule, subject):
                forgotten.append(view.name)
        notices = [notice_rule(1, scope) for scope in (Scope.USER, Scope.MEMBER, Scope.CHAT)]
        await self.limiter.reset(notices, subject)
        await self._audit.note(f"forgive {_who(subject)}", ", ".join(forgotten), "")
        return tuple(forgotten)

    async def ban(self, subject: Subject, how_long: str, reason: str = "") -> Any:
        """Refuse everything from somebody for that long."""
        done = await self._available("ban")(subject, how_long, reason=reason)
        await self._audit.note(f"ban {_who(subject)}", "", f"{how_long} {reason}".strip())
        return done

    async def unban(self, subject: Subject) -> Any:
        """Lift an operator's ban."""
        done = await self._available("unban")(subject)
        await self._audit.note(f"unban {_who(subject)}", "banned" if done else "", "")
        return done

    async def clear(self, *, everything: bool = False) -> int:
        """Forget every count under the prefix, in slices; how many keys there were.

        Args:
            everything: Also the live limits, their history and the audit. Running instances write
                the live limits back: use `rollback(0)` to drop them.
        """
        keep = () if everything else [self._key(name) for name in _KEPT]
        found = await self._documents.clear(f"{self.limiter.key_prefix}:ratelimit:", keep)
        await self._audit.note("clear everything" if everything else "clear", f"{found} keys", "")
        return found

    # --- live limits, see `Changes` for the rest ----------------------------------------------

    async def set_rule(self, name: str, limit: str | None = None, **change: Any) -> Overrides:
        """Change a rule on every instance by its name; see `Changes.set_rule`.

        Raises:
            ConfigError: There is no such rule, or the limit makes no sense for it.
            ConflictError: `if_version` was given, and is not the newest any more.
        """
        return await self.changes.set_rule(named(await self.limits(), name), limit, **change)

    async def wait_for(self, version: int, seconds: float = 6.0) -> tuple[InstanceView, ...]:
        """Wait until every instance obeys this version, or for so long; the instances then."""
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

    async def _rules(self, instances: Iterable[InstanceView]) -> tuple[RuleView, ...]:
        reported = merged(rule for each in instances for rule in each.rules)
        return reported or tuple(map(RuleView.of, self._told().get("rules", ())))

    async def _count(self, view: RuleView, subject: Subject) -> CountView | None:
        rule = replace(view, shadow=False).rule()  # what it would say if it were no trial
        key = None if rule is None else rule.key(self.limiter.key_prefix, subject)
        if rule is None or key is None:
            return None
        found = _answered(await self.limiter.peek(rule, subject))
        known = view.limit is not None
        return CountView(
            view.name,
            key,
            view.limit,
            found.allowed,
            found.remaining if known else None,
            rule.limit.capacity if known and isinstance(rule.limit, Limit) else None,
            found.retry_after,
            found.reset_after,
        )

    async def _ban_of(self, subject: Subject) -> Any:
        """An operator's ban of this user, if this version knows bans."""
        if not hasattr(self.limiter, "bans"):
            return None
        for each in await self.bans():
            if getattr(getattr(each, "subject", each), "user", None) == subject.user:
                return each
        return None

    async def _refused(self, subject: Subject) -> int | None:
        if not hasattr(self.limiter, "top_refused") or subject.user is None:
            return None
        try:
            top = await self.top(1_000)
        except ConfigError:  # statistics are switched off
            return None
        return next((each.count for each in top if each.user == subject.user), 0)

    def _is_exempt(
        self, subject: Subject, live: Overrides, instances: Iterable[InstanceView]
    ) -> bool:
        ids = {subject.user, subject.chat} - {None}
        elsewhere = {each for instance in instances for each in instance.exempt}
        elsewhere |= set() if instances else set(self._told().get("exempt", ()))
        return not ids.isdisjoint((elsewhere | live.exempt) - live.limited)

    def _check_subject(self, subject: Subject, instances: Iterable[InstanceView]) -> None:
        if subject.bot is None and any(each.per_bot for each in instances):
            raise ConfigError("each bot counts for itself (per_bot=True): name the bot's id")

    def _available(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] | None = getattr(self.limiter, name, None)
        if method is None:
            raise ConfigError(f"Limiter.{name} is not available in this version of bot_ratelimit")
        return method

    def _key(self, name: str) -> str:
        return live_key(self.limiter.key_prefix, name)


def _answered(decision: Decision) -> Decision:
    if decision.source == "policy":
        raise StorageError("Redis is out of reach, so nobody knows; see `bot-ratelimit health`")
    return decision


def _who(subject: Subject) -> str:
    found = {name: each for name, each in subject._asdict().items() if each is not None}
    return " ".join(f"{name} {each}" for name, each in found.items())


def _settings(settings: Settings | None) -> Iterable[SettingView]:
    """Each setting that is not a secret, with what decided it."""
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
        yield SettingView(name.upper(), "" if value is None else str(value), settings.origin(name))

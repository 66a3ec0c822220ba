"""RateLimitMiddleware: handles or refuses incoming updates."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Hashable, Iterable, Mapping
from itertools import product
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from aiogram import BaseMiddleware, Dispatcher
from aiogram.types import TelegramObject, Update

from bot_ratelimit.config.limits_file import named_limits as named_limits_of
from bot_ratelimit.config.live import Live
from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.config.settings import Origin, Settings
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.incoming.admission import Admission, Dispatch, Handler
from bot_ratelimit.incoming.arguments import (
    DefaultNames,
    OnLimitedLike,
    announce,
    limiter_of,
    rules_for_bots,
    rules_given,
)
from bot_ratelimit.incoming.backlog import Backlog
from bot_ratelimit.incoming.event_filter import EventFilter, IsExempt
from bot_ratelimit.incoming.events import NEVER_REFUSED, carried_by, is_from_bot, is_of_type
from bot_ratelimit.incoming.flags import Flags, HandlerLimits
from bot_ratelimit.incoming.from_settings import arguments_from, origins_of
from bot_ratelimit.incoming.key_conflicts import (
    class_registered_message,
    registered_middlewares,
    rules_by_path,
)
from bot_ratelimit.incoming.live_limits import LiveLimits
from bot_ratelimit.incoming.migration import Migration
from bot_ratelimit.incoming.notices import TEXTS
from bot_ratelimit.incoming.operated import Operated
from bot_ratelimit.incoming.registration import (
    check_dispatcher,
    check_exclude,
    register_guard,
    root_of,
)
from bot_ratelimit.incoming.telling import Telling
from bot_ratelimit.incoming.unread_flags import (
    check_flags,
    find_unread_flags,
    warn_of_unlimited,
)
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.limiter.observer import ObserverLike
from bot_ratelimit.rules.checks import check_flag
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import LimitLike, OnError, RuleLike, Rules

if TYPE_CHECKING:
    from bot_ratelimit.storage.redis.driver import Client

log = logging.getLogger("bot_ratelimit")


class RateLimitMiddleware(Operated, BaseMiddleware):
    """Passes an event to its handler, or drops it because its user sends too many.

    ::

        dp.message.middleware(RateLimitMiddleware("5/10s", redis, "booking_bot:client1"))

    The handler finds the Decision in `data["rate_limit"]`, as a `BoundDecision`. It is None for an
    event that is not counted: because it has no sender, is exempt, or is never refused, or because
    no limit applies to it; a penalty is no limit.

    Args:
        rate_limit: A number of seconds for one event, a str (`"5/10s"`, `"1/s; 20/minute"`), a
            `Rule`, a function of (event, data), async or not, that returns one of these, or
            several; one event per second by default. None limits only handlers with a flag.
        redis_client: A `redis.asyncio` client, or a URL, such as `redis://host/0`. Without it,
            each process counts on its own.
        key_prefix: The prefix of every key, `<prefix>:ratelimit:<user>`; `"bot"` by default.
        limiter: Use this limiter with its storage, prefix, `on_error` and `timeout` instead of
            making one.
        on_error: What happens when Redis fails: `"allow"` (the default), `"deny"`, or `"memory"` to
            count in this process.
        timeout: Seconds that Redis may take for a decision; 0.25 by default.
        on_limited: How a refused user is notified: a text, or texts by language code, instead of
            the built-in ones; a `Notices`; a function of (event, decision, data), async or not,
            that does everything itself; or None for no notice.
        exempt: Ids of users and chats that are not limited, or a function of (event, data), async
            or not, that returns whether an event is exempt.
        never_refuse: Types of updates and content types of messages that always pass and are not
            charged; `NEVER_REFUSED` by default.
        penalty: A ban for users who keep sending while they are refused.
        per_bot: Whether bots that share this prefix count separately.
        once_per_update: Whether an update that Telegram delivers again within a minute, to any
            instance, is charged only once.
        observer: One or several observers of every decision and notice; see `Observer`.
        statistics: Whether decisions are counted by hour; read them with
            `middleware.limiter.statistics()`.
        named_limits: Limits that handlers' flags refer to by `key`, `{"ai": "5/minute"}`; they win
            over the limit in a flag.
        live: Whether changes by operators apply while the bot runs, on all instances within 5
            seconds.
        bots: The limit of messages of another bot in a chat; a bot that exceeds it is ignored for a
            minute. None limits other bots like users.
        max_age: Seconds, or a text such as `"2m"`: older messages are dropped, for example those
            that arrived during an outage.

    Raises:
        ConfigError: An argument is invalid.
    """

    def __init__(
        self,
        rate_limit: RuleLike | Iterable[RuleLike] | None = 1.0,
        redis_client: Client | str | None = None,
        key_prefix: str = "bot",
        *,
        limiter: Limiter | None = None,
        on_error: OnError | None = None,
        timeout: float | None = None,
        on_limited: OnLimitedLike = TEXTS,
        exempt: Iterable[int] | IsExempt = (),
        never_refuse: Iterable[str] = DefaultNames(NEVER_REFUSED),
        penalty: Penalty | None = None,
        per_bot: bool = False,
        once_per_update: bool = False,
        observer: ObserverLike = None,
        statistics: bool = False,
        named_limits: Mapping[str, Any] | None = None,
        live: bool = False,
        bots: LimitLike | None = "20/minute",
        max_age: float | str | None = None,
    ) -> None:
        if isinstance(redis_client, TelegramObject):  # aiogram calls the registered class
            raise ConfigError(class_registered_message(type(self)))
        check_flag("live", live)
        self.rules = rules_given(rate_limit, penalty)
        self._bots = rules_for_bots(bots)
        self._event_filter = EventFilter(
            exempt=exempt,
            never_refuse=never_refuse,
            per_bot=per_bot,
            once_per_update=once_per_update,
            limits_bots=bots is not None,
        )
        self._penalty = penalty
        self._dispatcher: object = None
        self._dispatchers: WeakSet[Dispatcher] = WeakSet()
        self._discovered: WeakSet[Dispatcher] = WeakSet()
        self._excluded: WeakKeyDictionary[Dispatcher, frozenset[str]] = WeakKeyDictionary()
        self._closes = limiter is None
        self.limiter = limiter_of(
            limiter,
            redis_client,
            key_prefix,
            on_error=on_error,
            timeout=timeout,
            observer=observer,
            statistics=statistics,
        )
        limits = named_limits_of(named_limits or {})
        self._flags = Flags(self.limiter.storage, penalty, limits=limits)
        self._origins: dict[str, Origin] = dict.fromkeys(("limits", "penalty", "named"), "code")
        self.live = (
            Live(self.limiter, inventory=self.inventory, used=self._apply_overrides)
            if live
            else None
        )
        self.backlog = None if max_age is None else Backlog(max_age, self.limiter.observer)
        """Counts what `max_age` dropped."""
        telling = Telling(on_limited, self.limiter)
        self._migration = Migration(self.limiter, self._event_filter, self.live)
        self._live_limits = None
        if self.live is not None:
            self._live_limits = LiveLimits(self.live, [penalty] if penalty else [], self._flags)
        self._admission = Admission(
            self.limiter, self._event_filter, telling, self.live, self.backlog
        )
        announce(self.limiter, self.rules)

    @classmethod
    def from_settings(
        cls, settings: Settings | None = None, **overrides: Any
    ) -> RateLimitMiddleware:
        """Make a middleware from the environment, `.env` and RATE_LIMIT_FILE; see `Settings`.

        The Redis client that this makes is closed when the dispatcher shuts down.

        Args:
            settings: Use these settings instead of the environment.
            **overrides: Arguments of the constructor, which win over the settings.

        Raises:
            ConfigError: A variable or an argument is invalid.
        """
        if settings is None:
            settings = Settings()
        if overrides.get("limiter") is None:
            overrides.pop("limiter", None)
        middleware = cls(**arguments_from(settings, overrides))
        middleware._closes = "limiter" not in overrides
        middleware._origins = origins_of(settings, overrides)
        return middleware

    def setup(
        self, dispatcher: Dispatcher, *, guard: bool = False, exclude: Iterable[str] = ()
    ) -> RateLimitMiddleware:
        """Register the middleware for all events of users, so that each is charged once.

        It becomes an inner middleware of every observer. So it runs after the filters, counts only
        events that a handler answers, and knows the flags of the handler. Flags and keys are
        checked when the bot starts.

        Args:
            dispatcher: The dispatcher of the bot.
            guard: Whether it also runs before filters, FSM and the FSM storage. Then every update
                is counted, also those without a handler, for example group chatter. False by
                default.
            exclude: Names of observers to leave out, for example `"inline_query"`.

        Returns:
            This middleware.

        Raises:
            ConfigError: This is not a Dispatcher, `guard` is not a bool, or a name in `exclude` is
                not an observer.
        """
        check_dispatcher(dispatcher)
        check_flag("guard", guard)
        excluded = check_exclude(exclude, dispatcher)
        for name, observer in dispatcher.observers.items():
            if name not in excluded | {"update", "error"}:
                observer.middleware(self)
        if guard:
            # If there are two guards, each counts what the other excludes.
            self._excluded[dispatcher] = excluded & self._excluded.get(dispatcher, excluded)
            register_guard(self, dispatcher)

        async def start() -> None:
            self._check_keys(dispatcher)
            check_flags(dispatcher, self._flags)
            warn_of_unlimited(dispatcher, RateLimitMiddleware, self._event_filter.uncounted)
            for rules in (self.rules, *self._rules_of_flags(dispatcher)):
                self.limiter.decider.expect(rules)
            self.limiter.open()

        dispatcher.startup.register(start)
        # Older versions of aiogram set this only for updates that are polled.
        dispatcher.workflow_data.setdefault("dispatcher", dispatcher)
        self._belong_to(dispatcher)
        return self

    def __call__(self, handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
        """Pass the event to its handler, or refuse it by returning None, which drops it.

        What it returns is awaited. It is no coroutine function, because each coroutine on the way
        costs every update, above all in a flood.
        """
        dispatcher: Any = data.get("dispatcher")
        if not isinstance(dispatcher, Dispatcher):  # a bot may use the name for something else
            dispatcher = root_of(data.get("event_router"))
        if dispatcher is not self._dispatcher:
            self._discover(dispatcher)
        update, inner = data.get("event_update"), event
        if isinstance(event, Update):
            update, inner = event, carried_by(event) or event
            excluded = self._excluded.get(dispatcher) if dispatcher is not None else None
            if excluded and is_of_type(excluded, inner, update):
                return self._admission.handle_uncounted(handler, event, data)
        dispatch = Dispatch(handler, event, inner, update, data)
        limits = self._flags.limits_for(data.get("handler"), data.get("event_router"))
        if limits.collect is None:
            return self._limited(limits, dispatch)

        async def handle_collected(first: TelegramObject, data: dict[str, Any]) -> Any:
            return await self._limited(limits, Dispatch(handler, first, first, update, data))

        return limits.collect.collected(handle_collected, event, data, limits.name, self.limiter)

    def _limited(self, limits: HandlerLimits, dispatch: Dispatch) -> Awaitable[Any]:
        handler, event, inner, _, data = dispatch
        if self._bots and is_from_bot(inner, data):  # whatever the flag of the handler says
            return self._admission.handle(self._bots, ("bots", self._key_space), dispatch)
        if limits.rules is False:
            return self._admission.handle_uncounted(handler, event, data)
        rules = self.rules
        key: Hashable = self
        own = limits.rules if limits.rules is not True else self._live_rules(data)
        if own is not None:
            rules = own
            # A handler's own limit is charged once, however many middlewares run before it.
            key = (self.limiter.key_prefix, id(data.get("handler")))
        if limits.slots is None:
            return self._admission.handle(rules, key, dispatch)
        return self._admission.handle_in_slot(limits.slots, rules, key, dispatch)

    def _live_rules(self, data: dict[str, Any]) -> Rules | None:
        """The rules that operators gave a handler whose flag brings none."""
        if self._live_limits is None:
            return None
        return self._live_limits.rules_for(data.get("handler"), data.get("event_router"))

    async def close(self) -> None:
        """Close the storage, and a client of `from_settings`; clients that were given stay open."""
        if self.live is not None:
            await self.live.stop()
        await self.limiter.close()

    def _discover(self, dispatcher: Any) -> None:
        """Prepare for a dispatcher at its start or first event, since only then it is known."""
        if isinstance(dispatcher, Dispatcher) and dispatcher not in self._discovered:
            self._check_keys(dispatcher)
            if dispatcher not in self._dispatchers:
                if lost := find_unread_flags(dispatcher):
                    log.warning("RateLimitMiddleware: %s", lost)
                warn_of_unlimited(dispatcher, RateLimitMiddleware, self._event_filter.uncounted)
            self._belong_to(dispatcher)
            self._discovered.add(dispatcher)
            if self.live is not None:
                self.live.start()
        self._dispatcher = dispatcher

    def _check_keys(self, dispatcher: Dispatcher) -> None:
        """Raise ConfigError if middlewares of the bot have different limits under one key."""
        middlewares = registered_middlewares(dispatcher, RateLimitMiddleware)
        others = rules_by_path(
            rule
            for each in middlewares
            if each._checked_space == self._checked_space
            for rule in (*each.rules, *each._bots[:1])
        )
        self._flags = Flags(self.limiter.storage, self._penalty, others, self._flags.limits)
        if self._live_limits is not None:
            self._live_limits.use(self._flags)
        near = [each for each in middlewares if each._key_space == self._key_space]
        elsewhere = [each.rules for each in near if each is not self]
        flags = list(self._rules_of_flags(dispatcher))  # of which a guard does not know
        pairs = [*product([self.rules], flags), *product([self.rules, *flags], elsewhere)]
        if any(rule in others for rules, others in pairs for rule in rules):
            self._admission.key_space = self._key_space

    @property
    def _key_space(self) -> tuple[Hashable, str, bool]:
        """Rules of two middlewares can share a key only if this is equal."""
        limiter = self.limiter
        return limiter.storage.key_space, limiter.key_prefix, self._event_filter.per_bot

    @property
    def _checked_space(self) -> Hashable:
        """The key space as if all memory were one, so that what starts there starts with Redis."""
        space, *rest = self._key_space
        return "memory" if self.limiter.storage.source == "memory" else space, *rest

    def _apply_overrides(self, overrides: Overrides) -> None:
        self._event_filter.set_live_exemptions(overrides.exempt, overrides.limited)

    def _belong_to(self, dispatcher: Dispatcher) -> None:
        """Start, migrate and close together with this dispatcher."""
        if self.live is not None and dispatcher not in self._dispatchers:
            dispatcher.startup.register(self.live.begin)
            dispatcher.shutdown.register(self.live.stop)
        if self._closes:
            self._closes = False
            dispatcher.shutdown.register(self.close)
        if self._migration not in dispatcher.message.outer_middleware:
            dispatcher.message.outer_middleware(self._migration)
        self._dispatchers.add(dispatcher)

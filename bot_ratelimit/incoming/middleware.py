"""RateLimitMiddleware: handles or refuses incoming updates."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from inspect import isawaitable
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from weakref import WeakKeyDictionary, WeakSet

from aiogram import BaseMiddleware, Dispatcher
from aiogram.dispatcher.middlewares.user_context import EVENT_CONTEXT_KEY
from aiogram.exceptions import TelegramAPIError
from aiogram.types import TelegramObject, Update

from bot_ratelimit.concurrency import Concurrency
from bot_ratelimit.decision import Decision
from bot_ratelimit.errors import ConfigError, NotSentError
from bot_ratelimit.incoming.arguments import (
    POLICY,
    DefaultNames,
    DefaultPrefix,
    OnLimited,
    announce,
    check_limiter,
    check_policy,
    describe_type,
    notices_of,
)
from bot_ratelimit.incoming.bound_decision import BoundDecision
from bot_ratelimit.incoming.event_filter import Counted, EventFilter, IsExempt
from bot_ratelimit.incoming.events import NEVER_REFUSED, carried_by, is_of_type
from bot_ratelimit.incoming.flags import Flags
from bot_ratelimit.incoming.inventory import inventory
from bot_ratelimit.incoming.key_conflicts import (
    class_registered_message,
    conflict_message,
    registered_middlewares,
    separate_keys,
)
from bot_ratelimit.incoming.notices import (
    REFUSAL_KEY,
    TEXTS,
    Notices,
    Refusal,
    busy_notice_rule,
)
from bot_ratelimit.incoming.registration import (
    check_dispatcher,
    check_exclude,
    check_guard,
    register_guard,
    root_of,
)
from bot_ratelimit.limiter import Limiter, OnError
from bot_ratelimit.limits_file import named_limits as named_limits_of
from bot_ratelimit.live import Live
from bot_ratelimit.observer import ObserverLike
from bot_ratelimit.overrides import Overrides
from bot_ratelimit.penalty import Penalty
from bot_ratelimit.rule import Rule, RuleLike, Rules, Scope, Subject, notice_rule, rules_of
from bot_ratelimit.settings import Origin, Settings
from bot_ratelimit.storage.base import Storage
from bot_ratelimit.storage.memory import MemoryStorage
from bot_ratelimit.storage.redis import RedisStorage
from bot_ratelimit.storage.server import server_of
from bot_ratelimit.waiting_allowed import without_waiting

if TYPE_CHECKING:
    from bot_ratelimit.storage.driver import Client

log = logging.getLogger("bot_ratelimit")

Handler: TypeAlias = Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]]

DATA_KEY: Final = "rate_limit"
"""The key of the Decision in a handler's data: `async def handler(message, rate_limit)`."""

_STATE_NAME: Final = "_bot_ratelimit_decisions"
_NOT_ASKED: Final = Counted(Subject(), None)
"""Stands for an event of which it is not known yet whether it is counted."""
_made: Final = count()


class RateLimitMiddleware(BaseMiddleware):
    """Passes an event to its handler, or drops it because its user sends too many.

    ::

        dp.message.middleware(RateLimitMiddleware("5/10s", redis, "booking_bot:client1"))

    The handler finds the Decision in `data["rate_limit"]`, as a `BoundDecision`. It is None for an
    event that is not counted: because it has no sender, is exempt, or is never refused.

    Args:
        rate_limit: A number of seconds for one event, a str (`"5/10s"`, `"1/s; 20/minute"`), a
            `Rule`, or several of them; one event per second by default.
        redis_client: A `redis.asyncio` client. Without it, each process counts on its own.
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

    Raises:
        ConfigError: An argument is invalid.
    """

    def __init__(
        self,
        rate_limit: RuleLike | Iterable[RuleLike] = 1.0,
        redis_client: Client | None = None,
        key_prefix: str = DefaultPrefix("bot"),
        *,
        limiter: Limiter | None = None,
        on_error: OnError | None = None,
        timeout: float | None = None,
        on_limited: Notices | str | Mapping[str, str] | OnLimited | None = TEXTS,
        exempt: Iterable[int] | IsExempt = (),
        never_refuse: Iterable[str] = DefaultNames(NEVER_REFUSED),
        penalty: Penalty | None = None,
        per_bot: bool = False,
        once_per_update: bool = False,
        observer: ObserverLike = None,
        statistics: bool = False,
        named_limits: Mapping[str, Any] | None = None,
        live: bool = False,
    ) -> None:
        if isinstance(redis_client, TelegramObject):  # aiogram calls the registered class
            raise ConfigError(class_registered_message(type(self)))
        if penalty is not None and not isinstance(penalty, Penalty):
            raise ConfigError(f"penalty={penalty!r}: expected Penalty('10/minute', ban='15m')")
        rules = rules_of(rate_limit)
        self.rules = rules if penalty is None else rules_of((*rules, penalty))
        self._event_filter = EventFilter(
            exempt=exempt,
            never_refuse=never_refuse,
            per_bot=per_bot,
            once_per_update=once_per_update,
        )
        self._on_limited = notices_of(on_limited)
        self._penalized = penalty is not None
        self._flags = Flags(penalty, limits=named_limits_of(named_limits or {}))
        self._number = next(_made)
        self._dispatcher: object = None
        self._dispatchers: WeakSet[Dispatcher] = WeakSet()
        self._discovered: WeakSet[Dispatcher] = WeakSet()
        self._excluded: WeakKeyDictionary[Dispatcher, frozenset[str]] = WeakKeyDictionary()
        self._closes = limiter is None
        if limiter is None:
            limiter = Limiter(
                _storage_for(redis_client),
                key_prefix=str(key_prefix) if isinstance(key_prefix, str) else key_prefix,
                on_error="allow" if on_error is None else on_error,
                timeout=0.25 if timeout is None else timeout,
                observer=observer,
                statistics=statistics,
            )
        else:
            check_limiter(
                limiter,
                redis_client=redis_client,
                key_prefix=None if isinstance(key_prefix, DefaultPrefix) else key_prefix,
                on_error=on_error,
                timeout=timeout,
                observer=observer,
                statistics=statistics or None,
            )
        self.limiter = limiter
        self._origins: dict[str, Origin] = {"limits": "code", "penalty": "code"}
        if not isinstance(live, bool):
            raise ConfigError(f"live={live!r}: expected True or False")
        self.live = (
            Live(limiter, inventory=self.inventory, used=self._apply_overrides) if live else None
        )
        announce(limiter, self.rules)

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
        if not isinstance(settings, Settings):
            raise ConfigError(f"settings is {describe_type(settings)}: expected Settings(...)")
        if overrides.get("limiter") is None:
            overrides.pop("limiter", None)
        arguments: dict[str, Any] = {
            "rate_limit": settings.rules(),
            "exempt": settings.exempt(),
            "penalty": settings.file.penalty,
            "named_limits": settings.file.limits,
        }
        if settings.file.notices:
            arguments["on_limited"] = settings.file.notices
        policy = {name: getattr(settings, field) for field, name in POLICY.items()}
        origins: dict[str, Origin] = {
            "limits": "code" if "rate_limit" in overrides else settings.origin("rate_limit"),
            "penalty": "code" if "penalty" in overrides else "file",
        }
        if "limiter" in overrides:
            check_policy(settings, overrides["limiter"])
            return cls(**arguments | overrides)._with_origins(origins)
        arguments |= policy | overrides
        of_limiter = [*policy, "observer", "statistics"]
        limits = {name: arguments.pop(name) for name in of_limiter if name in arguments}
        limits["memory_size"] = settings.rate_limit_memory_size
        if "redis_client" in overrides:
            client = arguments.pop("redis_client")
            storage = _storage_for(client, settings.rate_limit_memory_size)
        else:
            if settings.redis_enabled is False:
                log.warning("RateLimitMiddleware: Redis is disabled by REDIS_ENABLED=false")
            storage = settings.storage()
        middleware = cls(**arguments, limiter=Limiter(storage, **limits))
        middleware._closes = True
        return middleware._with_origins(origins)

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
            ConfigError: This is not a Dispatcher, `guard` is no bool, or a name in `exclude` is not
                an observer.
        """
        check_dispatcher(dispatcher)
        check_guard(guard)
        excluded = check_exclude(exclude, dispatcher)
        for name, observer in dispatcher.observers.items():
            if name not in excluded | {"update", "error"}:
                observer.middleware(self)
        if guard:
            # If there are two guards, each counts what the other excludes.
            self._excluded[dispatcher] = excluded & self._excluded.get(dispatcher, excluded)
            register_guard(self, dispatcher)

        async def start() -> None:
            self._resolve_keys(dispatcher)
            self._flags.check(dispatcher)
            self.limiter.open()

        dispatcher.startup.register(start)
        # Older versions of aiogram set this only for updates that are polled.
        dispatcher.workflow_data.setdefault("dispatcher", dispatcher)
        self._register_close(dispatcher)
        self._dispatchers.add(dispatcher)
        return self

    async def __call__(self, handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
        """Pass the event to its handler, or refuse it by returning None, which drops it."""
        dispatcher: Any = data.get("dispatcher") or root_of(data.get("event_router"))
        if dispatcher is not self._dispatcher:
            self._discover(dispatcher)
        update, inner = data.get("event_update"), event
        if isinstance(event, Update):
            update, inner = event, carried_by(event) or event
            excluded = self._excluded.get(dispatcher) if dispatcher is not None else None
            if excluded and is_of_type(excluded, inner, update):
                return await self._handle_uncounted(handler, event, data)
        flag_rules = self._flags.rules_for(data.get("handler"), data.get("event_router"))
        if flag_rules is False:
            return await self._handle_uncounted(handler, event, data)
        rules = self.rules if flag_rules is True else flag_rules
        slots = self._flags.slots_for(data.get("handler"))
        if slots is None:
            return await self._handle(rules, handler, event, inner, update, data)
        return await self._handle_in_slot(slots, rules, handler, event, inner, update, data)

    async def reset(self, subject: Subject | int) -> bool:
        """Delete all counts of a user in this middleware; return True if there were any.

        This includes the middleware's rules, a ban by a penalty, the limits of all handlers' flags,
        and the record that the user was notified. Counts of a chat or a topic are deleted if the
        subject names it. Counts of all users together (`Scope.GLOBAL`) stay.

        Args:
            subject: A user's id, for the counts of the user in the private chat; or a `Subject`
                with the chat (for `Scope.CHAT` and `Scope.MEMBER`), the topic or the business
                connection, and with `per_bot` the bot.

        Raises:
            StorageError: The storage is unreachable; some of the counts may be deleted.
            ConfigError: The subject is neither an id nor a Subject, or does not name the bot with
                `per_bot`.
        """
        if not isinstance(subject, Subject):
            if not isinstance(subject, int) or isinstance(subject, bool):
                raise ConfigError(
                    f"reset: {subject!r} is not a user: pass an id, reset(42), or Subject(user=42)"
                )
            subject = Subject(user=subject, chat=subject)
        if not self._event_filter.per_bot:
            subject = subject._replace(bot=None)
        elif subject.bot is None:
            raise ConfigError(
                "reset: each bot has its own counts (per_bot=True), so name the bot, "
                "Subject(user=42, bot=bot.id)"
            )
        flags = [rule for each in self._dispatchers for rule in self._flags.all_rules(each)]
        scopes = (Scope.USER, Scope.MEMBER, Scope.CHAT)
        notices = [notice_rule(1, scope) for scope in scopes]
        notices += [busy_notice_rule(scope) for scope in scopes]
        by_path = {rule.path: rule for rule in (*notices, *flags, *self.rules)}
        rules = [rule for rule in by_path.values() if rule.scope is not Scope.GLOBAL]
        return await self.limiter.reset(rules, subject)

    def exempt(self, ids: Iterable[int]) -> None:
        """Exempt these users and chats, too, as the argument `exempt` does.

        What operators change live (`bot-ratelimit exempt ID --not`) wins, as always.

        Raises:
            ConfigError: These are not ids.
        """
        self._event_filter.exempt_for_good(ids)

    def inventory(self) -> dict[str, Any]:
        """Describe this middleware for operators, as JSON: its rules and exemptions."""
        overrides = Overrides() if self.live is None else self.live.overrides
        return {
            "rules": inventory(
                overrides, self.rules, self._origins, self._flags, self._dispatchers
            ),
            "exempt": sorted(self._event_filter.exempt_ids)[:1_000],
            "per_bot": self._event_filter.per_bot,
            "statistics": self.limiter.keeps_statistics,
        }

    @property
    def per_bot(self) -> bool:
        """Whether it counts apart for each bot."""
        return self._event_filter.per_bot

    async def close(self) -> None:
        """Close the storage, and a client of `from_settings`; clients that were given stay open."""
        if self.live is not None:
            await self.live.stop()
        await self.limiter.close()

    async def _handle(
        self,
        rules: Rules,
        handler: Handler,
        event: TelegramObject,
        inner: TelegramObject,
        update: Update | None,
        data: dict[str, Any],
        counted: Counted | None = _NOT_ASKED,
    ) -> Any:
        decision, subject = await self._decide(rules, inner, update, data, counted)
        data[DATA_KEY] = decision
        if decision is None or decision.allowed:
            return await handler(event, data)
        await self._notify(inner, decision, subject, data)
        return None

    async def _handle_in_slot(
        self,
        slots: Concurrency,
        rules: Rules,
        handler: Handler,
        event: TelegramObject,
        inner: TelegramObject,
        update: Update | None,
        data: dict[str, Any],
    ) -> Any:
        """Handle the event while it holds a slot; without a slot it is not charged either."""
        state = _dispatch_state(data)
        key = ("slot", self.limiter.key_prefix, id(data.get("handler")))
        if key in state:  # another middleware holds it in this dispatch
            return await self._handle(rules, handler, event, inner, update, data)
        counted = await self._event_filter.counted(inner, update, data)
        if counted is None or self.limiter.is_banned(counted.subject):
            return await self._handle(rules, handler, event, inner, update, data, counted)
        async with self.limiter.slot(slots, counted.subject) as slot:
            if slot.allowed:
                state[key] = slot
                try:
                    return await self._handle(rules, handler, event, inner, update, data, counted)
                finally:
                    del state[key]
        data[DATA_KEY] = slot
        await self._notify(inner, slot, counted.subject, data)
        return None

    async def _decide(
        self,
        rules: Rules,
        event: TelegramObject,
        update: Update | None,
        data: dict[str, Any],
        counted: Counted | None,
    ) -> tuple[Decision | None, Subject]:
        """Return the decision of this dispatch, which is made only once."""
        state = _dispatch_state(data)
        # The own limit of a handler is charged once, however many middlewares run before it.
        key = self if rules is self.rules else (self.limiter.key_prefix, id(data.get("handler")))
        if key not in state:
            if counted is _NOT_ASKED:
                counted = await self._event_filter.counted(event, update, data)
            if counted is None:
                state[key] = (None, Subject())
            else:
                subject = counted.subject
                applied: Rules | None = rules
                if self.live is not None:
                    if not self.live.is_ready:
                        await self.live.begin()
                    applied = self.live.applied(rules)
                if applied is None:  # switched off by operators
                    state[key] = (None, subject)
                else:
                    decision = await self.limiter.hit(applied, subject, once=counted.once)
                    bound = BoundDecision.of(decision, self.limiter, applied, subject)
                    state[key] = (bound, subject)
        found: tuple[Decision | None, Subject] = state[key]
        return found

    async def _notify(
        self, event: TelegramObject, decision: Decision, subject: Subject, data: dict[str, Any]
    ) -> None:
        if self._on_limited is None:
            return
        try:
            if isinstance(self._on_limited, Notices):
                # A late notice is useless, and it may delay a real answer.
                with without_waiting():
                    await self._on_limited.tell(event, decision, subject, self.limiter, data)
            else:
                data[REFUSAL_KEY] = Refusal(subject, self.limiter)
                result = self._on_limited(event, decision, data)
                if isawaitable(result):
                    await result
        except NotSentError as error:
            log.debug("A user was not told about the rate limit: %s", error)
        except TelegramAPIError as error:
            # For example a user who blocked the bot, a 429, or a broken network: the event stays
            # refused.
            log.warning("Could not tell a user about the rate limit: %r", error)
        except Exception as error:
            # An error in the custom function: its author needs the traceback.
            log.warning("Could not tell a user about the rate limit: %r", error, exc_info=error)

    async def _handle_uncounted(
        self, handler: Handler, event: TelegramObject, data: dict[str, Any]
    ) -> Any:
        # A guard may have decided. Anything else there belongs to the bot and is not a Decision.
        if not isinstance(data.get(DATA_KEY), Decision):
            data[DATA_KEY] = None
        return await handler(event, data)

    def _discover(self, dispatcher: Any) -> None:
        """Prepare for a dispatcher at its start or first event, since only then it is known."""
        if isinstance(dispatcher, Dispatcher) and dispatcher not in self._discovered:
            self._resolve_keys(dispatcher)
            self._register_close(dispatcher)
            self._dispatchers.add(dispatcher)
            self._discovered.add(dispatcher)
            if self.live is not None:
                self.live.start()
        self._dispatcher = dispatcher

    def _resolve_keys(self, dispatcher: Dispatcher) -> None:
        """Rename rules that would share a key with a different limit."""
        middlewares = registered_middlewares(
            dispatcher, RateLimitMiddleware, lambda each: each._number
        )
        spaces = [each._key_space for each in middlewares]
        result = separate_keys(
            [(space, each.rules) for space, each in zip(spaces, middlewares, strict=True)]
        )
        for middleware, rules, space in zip(middlewares, result, spaces, strict=True):
            others = {
                rule.path: rule
                for each, other_rules in zip(spaces, result, strict=True)
                if each == space
                for rule in other_rules
            }
            middleware._use_rules(rules, others)

    @property
    def _key_space(self) -> tuple[Hashable, str, bool]:
        """Rules of two middlewares can share a key only if this is equal."""
        limiter = self.limiter
        return server_of(limiter.storage), limiter.key_prefix, self._event_filter.per_bot

    def _use_rules(self, rules: Rules, others: Mapping[str, Rule]) -> None:
        for before, now in zip(self.rules, rules, strict=True):
            if before.path != now.path:
                message = conflict_message(before, now, others[before.path])
                log.warning("RateLimitMiddleware: %s", message)
        self.rules = rules
        penalty = rules[-1] if self._penalized else None
        self._flags = Flags(penalty, others, self._flags.limits)

    def _with_origins(self, origins: Mapping[str, Origin]) -> RateLimitMiddleware:
        self._origins.update(origins)
        return self

    def _apply_overrides(self, overrides: Overrides) -> None:
        self._event_filter.set_live_exemptions(overrides.exempt, overrides.limited)

    def _register_close(self, dispatcher: Dispatcher) -> None:
        if self.live is not None and dispatcher not in self._dispatchers:
            dispatcher.startup.register(self.live.begin)
            dispatcher.shutdown.register(self.live.stop)
        if self._closes:
            self._closes = False
            dispatcher.shutdown.register(self.close)


def _dispatch_state(data: dict[str, Any]) -> dict[object, Any]:
    """Return the state of the current dispatch.

    aiogram copies the data of a dispatch on its way to the routers. Only the event context is
    passed on uncopied, also into other tasks, and aiogram makes a new one for every dispatch. So
    the state is stored there.
    """
    attributes = getattr(data.get(EVENT_CONTEXT_KEY), "__dict__", None)
    state: dict[object, Any] = {}
    return state if attributes is None else attributes.setdefault(_STATE_NAME, state)


def _storage_for(client: Client | None, memory_size: int = 10_000) -> Storage:
    return MemoryStorage(memory_size) if client is None else RedisStorage(client)

"""RateLimitMiddleware: an update comes in, is handled or refused."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from aiogram import BaseMiddleware, Dispatcher
from aiogram.dispatcher.middlewares.user_context import EVENT_CONTEXT_KEY
from aiogram.types import TelegramObject, Update

from bot_ratelimit.decision import Decision
from bot_ratelimit.errors import ConfigError, NotSentError
from bot_ratelimit.incoming.events import NEVER_REFUSED, carried_by, is_of_type
from bot_ratelimit.incoming.flags import Flags
from bot_ratelimit.incoming.notices import TEXTS, Notices
from bot_ratelimit.incoming.screening import IsExempt, Screening
from bot_ratelimit.limiter import Limiter, OnError
from bot_ratelimit.penalty import Penalty
from bot_ratelimit.rule import RuleLike, Rules, Subject, rules_of
from bot_ratelimit.settings import Settings
from bot_ratelimit.storage.memory import MemoryStorage
from bot_ratelimit.storage.redis import RedisStorage
from bot_ratelimit.waiting import without_waiting

if TYPE_CHECKING:
    from bot_ratelimit.storage.link import Client

log = logging.getLogger("bot_ratelimit")

Handler: TypeAlias = Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]]
OnLimited: TypeAlias = Callable[[TelegramObject, Decision, dict[str, Any]], Awaitable[Any]]

DATA_KEY: Final = "rate_limit"
"""Where a handler finds the Decision: `async def handler(message, rate_limit)`."""

_NOTES: Final = "_bot_ratelimit_decisions"


class RateLimitMiddleware(BaseMiddleware):
    """Lets an event through to its handler, or drops it because its user sends too many.

    ::

        dp.message.middleware(RateLimitMiddleware("5/10s", redis, "booking_bot:client1"))

    The handler finds the `Decision` in `data["rate_limit"]`; None stands there for an event that
    is not counted: nobody is behind it, or it is exempt, or it is never refused.

    Args:
        rate_limit: A number of seconds for one event, a text (`"5/10s"`, `"1/s; 20/minute"`), a
            `Rule`, or several.
        redis_client: A `redis.asyncio` client. Without one each process counts for itself.
        key_prefix: What every key begins with, `<prefix>:ratelimit:<user>`.
        limiter: Use this one, and its storage and prefix, instead of making one.
        on_error: When Redis fails: `"allow"`, `"deny"`, or `"memory"` to limit by this process.
        timeout: Seconds that Redis gets for a decision.
        on_limited: How a refused user hears of it: a text or texts by language instead of ours,
            a `Notices`, an async function of (event, decision, data) that does it all itself, or
            None for silence.
        exempt: Ids of users and chats that are not limited, or a function of (event, data),
            async or not, that says whether an event is not.
        never_refuse: Types of updates and content types of messages that always pass, uncharged.
        penalty: A ban for those who keep hammering while they are refused.
        per_bot: Count apart for each bot that shares this prefix.
        once_per_update: Charge an update once even if Telegram delivers it again, to whichever
            instance, within a minute.

    Raises:
        ConfigError: An argument makes no sense.
    """

    def __init__(
        self,
        rate_limit: RuleLike | Iterable[RuleLike] = 1.0,
        redis_client: Client | None = None,
        key_prefix: str = "bot",
        *,
        limiter: Limiter | None = None,
        on_error: OnError = "allow",
        timeout: float = 0.25,
        on_limited: Notices | str | Mapping[str, str] | OnLimited | None = TEXTS,
        exempt: Iterable[int] | IsExempt = (),
        never_refuse: Iterable[str] = NEVER_REFUSED,
        penalty: Penalty | None = None,
        per_bot: bool = False,
        once_per_update: bool = False,
    ) -> None:
        if penalty is not None and not isinstance(penalty, Penalty):
            raise ConfigError(f"penalty={penalty!r}: expected Penalty('10/minute', ban='15m')")
        rules = rules_of(rate_limit)
        self.rules = rules if penalty is None else rules_of((*rules, penalty))
        self._screening = Screening(
            exempt=exempt,
            never_refuse=never_refuse,
            per_bot=per_bot,
            once_per_update=once_per_update,
        )
        self._on_limited = _notices(on_limited)
        self._flags = Flags(penalty)
        self._left_out: frozenset[str] = frozenset()
        self._closes = limiter is None
        if limiter is None:
            storage = MemoryStorage() if redis_client is None else RedisStorage(redis_client)
            limiter = Limiter(storage, key_prefix=key_prefix, on_error=on_error, timeout=timeout)
        elif redis_client is not None:
            raise ConfigError("redis_client and limiter are both given: the limiter has a storage")
        self.limiter = limiter
        _announce(limiter, self.rules)

    @classmethod
    def from_settings(
        cls, settings: Settings | None = None, **overrides: Any
    ) -> RateLimitMiddleware:
        """A middleware from the environment and `.env`; see `Settings` for the variables.

        It closes the Redis client that it makes when the dispatcher shuts down.

        Args:
            settings: These instead of the environment.
            **overrides: Arguments of the constructor that win over the settings.

        Raises:
            ConfigError: A variable or an argument makes no sense.
        """
        settings = settings or Settings()
        arguments: dict[str, Any] = {
            "rate_limit": settings.rules(),
            "key_prefix": settings.redis_key_prefix,
            "on_error": settings.rate_limit_on_error,
            "timeout": settings.rate_limit_timeout,
            "exempt": settings.rate_limit_exempt,
        } | overrides
        if "limiter" in arguments or "redis_client" in arguments:
            return cls(**arguments)
        limits = {name: arguments.pop(name) for name in ("key_prefix", "on_error", "timeout")}
        middleware = cls(**arguments, limiter=Limiter(settings.storage(), **limits))
        middleware._closes = True
        return middleware

    def setup(
        self, dispatcher: Dispatcher, *, guard: bool = False, exclude: Iterable[str] = ()
    ) -> RateLimitMiddleware:
        """Put the middleware on everything that users do, once and charged once.

        It takes the inner seat on every observer: after the filters, so that only what a handler
        answers to is counted, and where handlers' flags are known. The flags are checked when the
        bot starts.

        Args:
            dispatcher: The root of the bot's routers.
            guard: Also stand before filters, FSM and its storage: then every update is counted,
                also those that no handler answers to, such as the talk in a group.
            exclude: Names of observers to leave out, for example `"inline_query"`.

        Raises:
            ConfigError: A name in `exclude` is no observer.
        """
        self._left_out = frozenset([exclude] if isinstance(exclude, str) else exclude)
        if unknown := self._left_out - set(dispatcher.observers):
            raise ConfigError(f"exclude={sorted(unknown)}: the dispatcher has no such observers")
        for name, observer in dispatcher.observers.items():
            if name not in self._left_out | {"update", "error"}:
                observer.middleware(self)
        if guard:
            self._stand_guard(dispatcher)

        async def check_flags() -> None:
            self._flags.check(dispatcher)

        dispatcher.startup.register(check_flags)
        self._register_close(dispatcher)
        return self

    async def __call__(self, handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
        """Handle the event or refuse it; refused, it returns None, which drops it."""
        if self._closes:
            self._register_close(data.get("dispatcher"))
        update, inner = data.get("event_update"), event
        if isinstance(event, Update):
            update, inner = event, carried_by(event) or event
            if self._left_out and is_of_type(self._left_out, inner, update):
                return await handler(event, data)
        own = self._flags.rules_for(data.get("handler"), data.get("event_router"))
        if own is False:
            data.setdefault(DATA_KEY, None)
            return await handler(event, data)
        rules = self.rules if own is True else own
        decision, subject = await self._decide(rules, inner, update, data)
        data[DATA_KEY] = decision
        if decision is None or decision.allowed:
            return await handler(event, data)
        await self._tell(inner, decision, subject, data)
        return None

    async def close(self) -> None:
        """Close the storage, and the client that `from_settings` made; never a client given."""
        await self.limiter.close()

    async def _decide(
        self, rules: Rules, event: TelegramObject, update: Update | None, data: dict[str, Any]
    ) -> tuple[Decision | None, Subject]:
        """The decision of this dispatch: made once, however often the middleware is met in it.

        The data of a dispatch is copied on its way to the routers; what goes along uncopied, into
        other tasks too, is the event context, of which aiogram makes a new one in every dispatch.
        So the note is left there.
        """
        context = data.get(EVENT_CONTEXT_KEY)
        notes: dict[object, tuple[Decision | None, Subject]] = {}
        if hasattr(context, "__dict__"):
            notes = vars(context).setdefault(_NOTES, notes)
        # A handler's own limit is charged once, however many middlewares stand before it.
        mine = self if rules is self.rules else (self.limiter.key_prefix, id(data.get("handler")))
        if mine not in notes:
            counted = await self._screening.counted(event, update, data)
            if counted is None:
                notes[mine] = (None, Subject())
            else:
                decision = await self.limiter.hit(rules, counted.subject, once=counted.once)
                notes[mine] = (decision, counted.subject)
        return notes[mine]

    async def _tell(
        self, event: TelegramObject, decision: Decision, subject: Subject, data: dict[str, Any]
    ) -> None:
        if self._on_limited is None:
            return
        try:
            if isinstance(self._on_limited, Notices):
                # A notice that comes late is worth nothing, and may delay a real answer.
                with without_waiting():
                    await self._on_limited.tell(event, decision, subject, self.limiter, data)
            else:
                await self._on_limited(event, decision, data)
        except NotSentError as error:
            log.debug("A user was not told about the rate limit: %s", error)
        except Exception as error:
            # A user who blocked the bot, a 429, a broken network: the event stays refused.
            log.warning("Could not tell a user about the rate limit: %r", error)

    def _stand_guard(self, dispatcher: Dispatcher) -> None:
        """Take the place before FSM among the update's outer middlewares."""
        outer = dispatcher.update.outer_middleware
        registered = list(outer)
        at = registered.index(dispatcher.fsm) if dispatcher.fsm in registered else len(registered)
        behind = registered[at:]
        for middleware in behind:
            outer.unregister(middleware)
        outer.register(self)
        for middleware in behind:
            outer.register(middleware)

    def _register_close(self, dispatcher: Any) -> None:
        """A middleware is not told where it is registered; the first event tells."""
        if self._closes and isinstance(dispatcher, Dispatcher):
            self._closes = False
            dispatcher.shutdown.register(self.close)


def _notices(
    on_limited: Notices | str | Mapping[str, str] | OnLimited | None,
) -> Notices | OnLimited | None:
    if isinstance(on_limited, (str, Mapping)):
        return Notices(on_limited)
    if on_limited is None or isinstance(on_limited, Notices) or callable(on_limited):
        return on_limited
    raise ConfigError(
        f"on_limited={on_limited!r}: expected a text, texts by language, Notices(...), "
        "an async function of (event, decision, data), or None"
    )


def _announce(limiter: Limiter, rules: Rules) -> None:
    limits = "; ".join(map(str, rules))
    if limiter.storage.source == "redis":
        log.info(
            "RateLimitMiddleware: Using Redis for distributed rate limiting "
            "(limit: %s; key prefix: %s)",
            limits,
            limiter.key_prefix,
        )
    else:
        log.warning(
            "RateLimitMiddleware: Redis not provided, using in-memory cache (limit: %s). "
            "This will NOT work correctly in multi-instance deployment",
            limits,
        )

"""RateLimitMiddleware: an update comes in, is handled or refused."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from aiogram import BaseMiddleware, Dispatcher
from aiogram.types import TelegramObject

from bot_ratelimit.decision import Decision
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.events import subject_of
from bot_ratelimit.limiter import Limiter, OnError
from bot_ratelimit.notices import NOTICE, Notices
from bot_ratelimit.rule import Rule, RuleLike, rules_of
from bot_ratelimit.settings import Settings
from bot_ratelimit.storage.memory import MemoryStorage
from bot_ratelimit.storage.redis import RedisStorage

if TYPE_CHECKING:
    from bot_ratelimit.storage.redis import Client

log = logging.getLogger("bot_ratelimit")

Handler: TypeAlias = Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]]
OnLimited: TypeAlias = Callable[[TelegramObject, Decision, dict[str, Any]], Awaitable[Any]]

DATA_KEY: Final = "rate_limit"
"""Where a handler finds the Decision: `async def handler(message, rate_limit)`."""


class RateLimitMiddleware(BaseMiddleware):
    """Lets an event through to its handler, or drops it because its user sends too many.

    ::

        dp.message.middleware(RateLimitMiddleware("5/10s", redis, "booking_bot:client1"))

    The handler finds the `Decision` in `data["rate_limit"]`, or None there for an event with no
    user behind it, which always passes.

    Args:
        rate_limit: A number of seconds for one event, a text (`"5/10s"`, `"1/s; 20/minute"`), a
            `Rule`, or several.
        redis_client: A `redis.asyncio` client. Without one each process counts for itself.
        key_prefix: What every key begins with, `<prefix>:ratelimit:<user>`.
        limiter: Use this one, and its storage and prefix, instead of making one.
        on_error: When Redis fails: `"allow"`, `"deny"`, or `"memory"` to limit by this process.
        timeout: Seconds that Redis gets for a decision.
        on_limited: An async function of (event, decision, data), called for each refused event;
            `"notify"` answers button presses and tells private chats once for each wait; None
            keeps silent.

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
        on_limited: OnLimited | Literal["notify"] | None = "notify",
    ) -> None:
        self.rules = rules_of(rate_limit)
        if limiter is None:
            storage = MemoryStorage() if redis_client is None else RedisStorage(redis_client)
            limiter = Limiter(storage, key_prefix=key_prefix, on_error=on_error, timeout=timeout)
            self._close_at_shutdown = True
        elif redis_client is not None:
            raise ConfigError("redis_client and limiter are both given: the limiter has a storage")
        else:
            self._close_at_shutdown = False
        self.limiter = limiter
        if on_limited == "notify":
            rules_of((*self.rules, Rule(1, name=NOTICE)))  # a rule of that name is in its way
            on_limited = Notices(limiter)
        elif on_limited is not None and not callable(on_limited):
            raise ConfigError(
                f"on_limited={on_limited!r}: expected an async function of "
                "(event, decision, data), 'notify' or None"
            )
        self._on_limited = on_limited
        _announce(limiter, "; ".join(map(str, self.rules)))

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
        }
        arguments |= overrides
        if "limiter" in arguments or "redis_client" in arguments:
            return cls(**arguments)
        limits = {name: arguments.pop(name) for name in ("key_prefix", "on_error", "timeout")}
        middleware = cls(**arguments, limiter=Limiter(settings.storage(), **limits))
        middleware._close_at_shutdown = True
        return middleware

    async def __call__(self, handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
        """Handle the event or refuse it; refused, it returns None, which drops it."""
        if self._close_at_shutdown:
            self._register_close(data.get("dispatcher"))
        subject = subject_of(event, data)
        if subject is None:
            data[DATA_KEY] = None
            return await handler(event, data)
        decision = data[DATA_KEY] = await self.limiter.hit(self.rules, subject)
        if decision.allowed:
            return await handler(event, data)
        await self._tell(event, decision, data)
        return None

    async def close(self) -> None:
        """Close the storage, and the client that `from_settings` made; never a client given."""
        await self.limiter.close()

    async def _tell(self, event: TelegramObject, decision: Decision, data: dict[str, Any]) -> None:
        if self._on_limited is None:
            return
        try:
            await self._on_limited(event, decision, data)
        except Exception as error:
            # A user who blocked the bot, a 429, a broken network: the event stays refused.
            log.warning("Could not tell a user about the rate limit: %r", error)

    def _register_close(self, dispatcher: Any) -> None:
        """A middleware is not told where it is registered; the first event tells."""
        if isinstance(dispatcher, Dispatcher):
            self._close_at_shutdown = False
            dispatcher.shutdown.register(self.close)


def _announce(limiter: Limiter, rules: str) -> None:
    if limiter.storage.source == "redis":
        log.info(
            "RateLimitMiddleware: Using Redis for distributed rate limiting "
            "(limit: %s; key prefix: %s)",
            rules,
            limiter.key_prefix,
        )
    else:
        log.warning(
            "RateLimitMiddleware: Redis not provided, using in-memory cache (limit: %s). "
            "This will NOT work correctly in multi-instance deployment",
            rules,
        )

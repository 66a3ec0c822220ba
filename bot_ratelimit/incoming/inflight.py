"""InFlight: how many updates are handled at a time, and that a shutdown waits for them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Hashable, Mapping
from math import isfinite
from typing import Any, Final

from aiogram import Dispatcher
from aiogram.dispatcher.event.bases import UNHANDLED
from aiogram.types import TelegramObject, Update

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.incoming.adaptive import AdaptiveLimit
from bot_ratelimit.incoming.admission import Handler
from bot_ratelimit.incoming.arguments import OnLimitedLike
from bot_ratelimit.incoming.dispatch_state import REFUSED, dispatch_state
from bot_ratelimit.incoming.events import NEVER_REFUSED, carried_by, is_one_of, is_paid, subject_of
from bot_ratelimit.incoming.registration import First, check_dispatcher, register_guard
from bot_ratelimit.incoming.telling import Telling
from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.limiter.observer import ObserverLike, observers_of
from bot_ratelimit.rules.checks import check_flag, check_whole
from bot_ratelimit.rules.concurrency import Concurrency
from bot_ratelimit.rules.rule import Scope, Subject
from bot_ratelimit.storage.loops import Seldom
from bot_ratelimit.storage.memory import MemoryStorage

log = logging.getLogger("bot_ratelimit")

OVERLOADED: Final[Mapping[str, str]] = {
    "en": "The bot is very busy. Please try again in a moment.",
    "ru": "Бот сейчас перегружен. Попробуйте чуть позже.",
}
"""The texts for updates that are refused because the bot is busy."""

_AGAIN: Final = 1.0
"""Seconds after which a refused update may be tried again."""
_TICK: Final = 0.05
"""Seconds between two measurements of the event loop's lag."""


class InFlight(First):
    """Counts the updates that are being handled, bounds them, and lets a shutdown wait for them.

    ::

        InFlight().setup(dp)                                # only waits at shutdown
        InFlight(limit=200, per_user=20).setup(dp)
        InFlight(limit=1000, adaptive=True).setup(dp)       # finds the limit between 10 and 1000

    aiogram waits neither for the tasks of long polling nor for the webhook's requests before it
    calls the shutdown callbacks and closes the bot's session. Without this class, a handler that is
    still running finds closed connections, and its user gets no answer.

    With a limit, further updates of users are refused with a notice while so many are being handled
    by this process. Payments and service messages are always handled.

    Args:
        patience: Seconds to wait at shutdown at most; less than the 10 that Docker gives a
            container to stop.
        limit: How many updates this process handles at a time; None for any number.
        per_user: How many of them may be of one user; each photo of an album is one, and each
            message that `Collect` waits with.
        per_chat: How many of them may be of one chat.
        adaptive: Whether the limit follows the latency of handlers and of the event loop; `limit`
            is then the upper bound, 1000 by default. For handlers that all take about as long:
            with others it refuses updates without need.
        at_least: The lower bound of an adaptive limit.
        on_busy: How a refused user is notified, as `on_limited` of `RateLimitMiddleware`.
        observer: Is told of the limit and of refused updates, for example `PrometheusMetrics()`.

    Raises:
        ConfigError: An argument is invalid.
    """

    def __init__(
        self,
        patience: float = 8.0,
        *,
        limit: int | None = None,
        per_user: int | None = None,
        per_chat: int | None = None,
        adaptive: bool = False,
        at_least: int = 10,
        on_busy: OnLimitedLike = OVERLOADED,
        observer: ObserverLike = None,
    ) -> None:
        if isinstance(patience, bool) or not isinstance(patience, (int, float)):
            raise ConfigError(f"patience={patience!r}: expected seconds, such as 8.0")
        if not isfinite(patience) or patience < 0:
            raise ConfigError(f"patience={patience!r}: expected seconds, 0 or more")
        bounds = {"limit": limit, "per_user": per_user, "per_chat": per_chat, "at_least": at_least}
        for name, value in bounds.items():
            if value is not None:
                check_whole(name, value, 1)
        check_flag("adaptive", adaptive)
        self.patience = float(patience)
        self.refused = 0
        """How many updates were refused since the start."""
        self._limit = limit
        self._adaptive: AdaptiveLimit | None = None
        if adaptive:
            high = 1_000 if limit is None else limit
            if at_least > high:
                raise ConfigError(f"at_least={at_least}: expected at most the limit, {high}")
            self._adaptive = AdaptiveLimit(at_least, high)
        self._shares = {"user": per_user, "chat": per_chat}
        self._held: Counter[Hashable] = Counter()
        self._observer = observers_of(observer)
        self._telling = Telling(on_busy, Limiter(MemoryStorage()), "on_busy")
        self._busy = Seldom()
        self._count = 0
        self._tick: asyncio.TimerHandle | None = None
        # Made when it is needed: an event belongs to the event loop that waits for it first.
        self._waiting: set[asyncio.Event] = set()

    @property
    def limit(self) -> int | None:
        """How many updates may be handled at a time now."""
        return self._limit if self._adaptive is None else self._adaptive.current

    def setup(self, dispatcher: Dispatcher) -> InFlight:
        """Count the updates of this dispatcher, and wait for them first when it shuts down.

        It does not matter whether this is called before or after the `setup` of the limits: the
        other shutdown callbacks run when the wait is over, so nothing that a handler still needs
        is closed before.

        A second call for the same dispatcher has no effect.

        Args:
            dispatcher: The root of the bot's routers.

        Raises:
            ConfigError: This is not a Dispatcher.
        """
        check_dispatcher(dispatcher)
        if self in dispatcher.update.outer_middleware:
            return self
        register_guard(self, dispatcher)
        callbacks = dispatcher.shutdown
        callbacks.register(self.drain)
        callbacks.handlers.insert(0, callbacks.handlers.pop())
        return self

    async def __call__(self, handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
        """Handle the update and count it until the handler has ended, or refuse it."""
        keys: list[tuple[str, int]] = []
        if self.limit is not None or any(self._shares.values()):
            inner = (carried_by(event) if isinstance(event, Update) else None) or event
            subject = subject_of(inner, data)
            ids = {"user": subject and subject.user, "chat": subject and subject.chat}
            keys = [(name, id_) for name, id_ in ids.items() if id_ and self._shares[name]]
            full = None if subject is None else self._full(keys)
            if subject is not None and full and not _always_handled(inner, data):
                return await self._refuse(inner, subject, *full, data)
        began, result = time.perf_counter(), None
        self._began(keys)
        try:
            result = await handler(event, data)
            return result
        finally:
            # What no handler handled takes no time; beside it, handlers would seem to be slow.
            is_handled = result is not UNHANDLED and REFUSED not in dispatch_state(data)
            if self._adaptive is not None and is_handled:
                self._adaptive.handled(time.perf_counter() - began, self._count)
            self._ended(keys)

    def _full(self, keys: list[tuple[str, int]]) -> tuple[str, int] | None:
        """The name and value of the bound that is reached; None if there is none."""
        limit = self.limit
        if limit is not None and self._count >= limit:
            return "limit", limit
        for key in keys:
            most = self._shares[key[0]] or 0
            if self._held[key] >= most:
                return f"per_{key[0]}", most
        return None

    async def _refuse(
        self, event: TelegramObject, subject: Subject, name: str, most: int, data: dict[str, Any]
    ) -> None:
        self.refused += 1
        self._observer.turned_away("busy")
        if count := self._busy.due():
            log.warning(
                "Updates refused: %d, the last one by %s=%d of InFlight; %d are being handled",
                count,
                name,
                most,
                self._count,
            )
        rule = Concurrency(most, Scope.GLOBAL, "in-flight")
        await self._telling.tell(
            event, Decision(False, rule, 0, _AGAIN, _AGAIN, "memory"), subject, data
        )

    def _began(self, keys: list[tuple[str, int]]) -> None:
        self._count += 1
        self._held.update(keys)
        if self._adaptive is not None and self._tick is None:
            self._measure_lag(asyncio.get_running_loop())
        self._report()

    def _ended(self, keys: list[tuple[str, int]]) -> None:
        self._count -= 1
        for key in keys:
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]
        self._report()
        if not self._count:
            if self._tick is not None:
                self._tick.cancel()
                self._tick = None
            for idle in self._waiting:
                idle.set()

    def _measure_lag(self, loop: asyncio.AbstractEventLoop) -> None:
        """Measure how late a timer is, again and again while updates are being handled."""
        due = loop.time() + _TICK

        def tick() -> None:
            if self._adaptive is not None:
                self._adaptive.lagged(max(0.0, loop.time() - due))
            self._measure_lag(loop)

        self._tick = loop.call_at(due, tick)

    def _report(self) -> None:
        self._observer.in_flight(self._count, self.limit or 0)

    async def drain(self) -> None:
        """Wait until no update is being handled, or until `patience` is over."""
        if not self._count:
            return
        idle = asyncio.Event()
        self._waiting.add(idle)
        try:
            async with asyncio.timeout(self.patience):
                await idle.wait()
        except TimeoutError:
            log.warning("%d updates were still being handled at shutdown", self._count)
        finally:
            self._waiting.discard(idle)


def _always_handled(event: TelegramObject, data: dict[str, Any]) -> bool:
    return is_paid(event) or is_one_of(NEVER_REFUSED, event, data.get("event_update"))

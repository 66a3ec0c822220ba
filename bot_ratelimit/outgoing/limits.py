"""OutgoingLimits: paces the requests of a bot, so that Telegram accepts them."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
)
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from aiogram import Bot, Dispatcher
from aiogram.client.session.middlewares.base import BaseRequestMiddleware
from aiogram.exceptions import TelegramRetryAfter

from bot_ratelimit.config.settings import Settings
from bot_ratelimit.errors import ConfigError, NotSentError, SendQueueFullError
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.limiter.observer import Observer, ObserverLike, RequestOutcome, observers_of
from bot_ratelimit.limiter.waiting_allowed import waiting_allowed
from bot_ratelimit.outgoing.broadcast import run
from bot_ratelimit.outgoing.budgets import Budgets
from bot_ratelimit.outgoing.chat_queue import ChatQueue, Request, Send
from bot_ratelimit.outgoing.delivery import Delivery, DeliveryOptions, broadcasting
from bot_ratelimit.outgoing.floods import Floods, describe
from bot_ratelimit.outgoing.journal import Journal
from bot_ratelimit.outgoing.methods import Kind, Method, chat_of, edit_of, traffic_of
from bot_ratelimit.outgoing.pacing import Pacer
from bot_ratelimit.outgoing.permits import Permits
from bot_ratelimit.outgoing.progress import Progress
from bot_ratelimit.outgoing.sent import Sent
from bot_ratelimit.outgoing.sleeper import Sleeper
from bot_ratelimit.rules.rule import LimitLike
from bot_ratelimit.storage.memory import MemoryStorage
from bot_ratelimit.storage.redis.storage import RedisStorage

if TYPE_CHECKING:
    from bot_ratelimit.storage.redis.driver import Client

log = logging.getLogger("bot_ratelimit")

T = TypeVar("T", bound="int | str")

# A request can wait for Redis' answer; an answer that is mistaken for lost costs a second burst.
TIMEOUT: Final = 1.0
# Idle queues are dropped about once in this many seconds.
_SWEEP_EVERY: Final = 1.0
_MAX_NAMED: Final = 10


class OutgoingLimits(BaseRequestMiddleware):
    """Sends no faster than Telegram accepts, in order, over all instances together.

    ::

        outgoing = OutgoingLimits(redis, "my_bot")
        outgoing.setup(bot, dispatcher)

    Args:
        redis_client: A `redis.asyncio` client, or a URL, such as `redis://host/0`. Without it,
            each process paces by itself.
        key_prefix: The prefix of every key, `<prefix>:ratelimit:bot:<bot>:out:...`.
        limiter: Use this limiter with its storage and prefix instead of making one.
        per_chat: The limit of one chat; None for no limit.
        per_group: The additional limit of a group or channel; None for no limit.
        broadcast: The common limit of everything that is sent inside `broadcasting()`; None for no
            limit. Messages with `allow_paid_broadcast` have a budget of 1000 a second instead.
        max_wait: Seconds that a request waits for a block after a 429. If the block lasts longer,
            the request raises `TelegramRetryAfter` at once, with the rest of the block. Broadcasts
            wait as long as it takes.
        retries: How often a request that was answered with 429 is sent again. No other request is
            ever sent again.
        repeat_albums: Whether albums, and several messages forwarded or copied in one call, are
            also sent again. Telegram may have delivered a part of them.
        merge_edits: Whether only the newest of several waiting edits of one message is sent.
        in_order: Whether the next request of a chat is sent only when the one before it is
            answered.
        max_waiting: How many requests may wait for one chat; in the whole process, ten times as
            many.
        observer: One or several observers of paced requests, 429s and the number of waiting
            requests; see `Observer`.
        margin: By how much every period is made longer, as a share from 0 to 1: requests do not all
            take the same time to arrive.

    Raises:
        ConfigError: An argument is invalid.
    """

    def __init__(
        self,
        redis_client: Client | str | None = None,
        key_prefix: str = "bot",
        *,
        limiter: Limiter | None = None,
        per_chat: LimitLike | None = "1/s burst 5",
        per_group: LimitLike | None = "20/minute sliding",
        broadcast: LimitLike | None = "25/s",
        max_wait: float = 10.0,
        retries: int = 3,
        repeat_albums: bool = False,
        merge_edits: bool = True,
        in_order: bool = True,
        max_waiting: int = 1_000,
        margin: float = 0.02,
        observer: ObserverLike = None,
    ) -> None:
        self._observer = observers_of(observer)
        self.budgets = Budgets(per_chat, per_group, broadcast, margin)
        self.max_wait = _number("max_wait", max_wait, 0, "seconds from 0 up, for example 10.0")
        self.retries = _count("retries", retries, 0)
        self.max_waiting = _count("max_waiting", max_waiting, 1)
        if limiter is not None and redis_client is not None:
            raise ConfigError(
                "redis_client and limiter are both given: the limiter has its own storage, so "
                "remove redis_client"
            )
        self._closes = limiter is None
        if limiter is None:
            storage = MemoryStorage() if redis_client is None else RedisStorage(redis_client)
            limiter = Limiter(storage, key_prefix=key_prefix, on_error="memory", timeout=TIMEOUT)
        self.limiter = limiter
        self._merge_edits = merge_edits
        self._sleeper = Sleeper()
        permits = Permits(limiter)
        floods = self._floods = Floods(permits, self.budgets, self._observer)
        self._pacer = Pacer(permits, self.budgets, floods, self._sleeper, self.max_wait)
        options = DeliveryOptions(self.retries, self.max_wait, repeat_albums, in_order)
        self._delivery = Delivery(self._pacer, floods, self._sleeper, options, self._report_queued)
        self._queues: dict[tuple[int, int | str, str | None], ChatQueue] = {}
        self._sweep_at = 0.0
        self._under_way = 0
        _announce(limiter, self.budgets)

    @classmethod
    def from_settings(cls, settings: Settings | None = None, **overrides: Any) -> OutgoingLimits:
        """Make OutgoingLimits from the environment, `.env` and RATE_LIMIT_FILE.

        They say where Redis is, and give the key prefix and the budgets. `close` closes the Redis
        client that this makes.

        Args:
            settings: Use these settings instead of the environment.
            **overrides: Arguments of the constructor, which win over the settings.

        Raises:
            ConfigError: A variable or an argument is invalid.
        """
        settings = settings or Settings()
        overrides = {**settings.file.outgoing, **overrides}
        if "limiter" in overrides or "redis_client" in overrides:
            return cls(**overrides)
        limiter = Limiter(
            settings.storage(),
            key_prefix=overrides.pop("key_prefix", settings.redis_key_prefix),
            on_error="memory",
            timeout=TIMEOUT,
        )
        limits = cls(limiter=limiter, **overrides)
        limits._closes = True
        return limits

    def setup(self, bot: Bot, dispatcher: Dispatcher | None = None) -> OutgoingLimits:
        """Pace everything that this bot sends, and all other bots that share its session.

        Args:
            bot: The bot. Bots that share a session need only one call.
            dispatcher: At its shutdown, waiting requests end before the session closes. Without it,
                call `close` yourself.

        Returns:
            This object.
        """
        if self not in bot.session.middleware:
            bot.session.middleware(self)
        if dispatcher is not None:
            dispatcher.startup.register(self.open)
            dispatcher.shutdown.register(self.close)
        return self

    @asynccontextmanager
    async def broadcasting(self) -> AsyncIterator[None]:
        """Treat everything that is sent inside as part of a broadcast.

        It also takes from the broadcast budget, and lets replies go first.
        """
        token = broadcasting.set(True)
        try:
            yield
        finally:
            broadcasting.reset(token)

    def broadcast(
        self,
        chats: Iterable[T] | AsyncIterable[T],
        send: Callable[[T], Awaitable[Any]],
        *,
        journal: Journal | None = None,
        progress: Progress | None = None,
        in_flight: int = 50,
    ) -> AsyncGenerator[Sent[T], None]:
        """Send to many chats at the pace of the broadcast budget, and yield the outcome for each.

        ::

            async for sent in outgoing.broadcast(chats, send, journal=Journal("news.txt")):
                if sent.status is Status.BLOCKED:
                    await forget(sent.chat)

        Args:
            chats: Ids, from any iterable or async iterable.
            send: Sends to one chat, with a bot that is set up; called once for each chat.
            journal: Records what was done, so that the next run does not repeat it.
            progress: Counts outcomes and shows the progress.
            in_flight: How many chats are sent to at the same time: the budget per second times the
                seconds that a request takes.

        Raises:
            NotSentError: The bot is shutting down; the journal says where to continue.
            ConfigError: `in_flight` is not a whole number from 1 up.
        """
        _count("in_flight", in_flight, 1)
        return run(chats, send, journal=journal, progress=progress, in_flight=in_flight)

    async def __call__(self, make_request: Send, bot: Bot, method: Method) -> Any:
        """Send the request when it has its turn.

        Raises:
            NotSentError: The request may not wait, or the bot is shutting down.
            SendQueueFullError: Too many requests wait already.
            TelegramRetryAfter: The 429 lasts longer than requests wait, or all retries were used.
        """
        traffic = traffic_of(type(method))
        if traffic.kind is Kind.NEVER:
            try:
                return await make_request(bot, method)
            except TelegramRetryAfter as error:
                self._floods.report_method(error)
                raise
        if self._observer is not None:
            return await self._watched(self._observer, make_request, bot, method)
        return await self._paced(make_request, bot, method)

    async def _watched(
        self, observer: Observer, make_request: Send, bot: Bot, method: Method
    ) -> Any:
        """Send the request and report its outcome to the observer."""
        clock = asyncio.get_running_loop().time
        began, left = clock(), 0.0
        outcome: RequestOutcome = "unsent"

        async def send(to: Bot, what: Method) -> Any:
            nonlocal left, outcome
            left, outcome = clock(), "failed"
            try:
                result = await make_request(to, what)
            except TelegramRetryAfter:
                outcome = "flooded"  # unless it is sent again; an action never is
                raise
            outcome = "sent"
            return result

        try:
            return await self._paced(send, bot, method)
        except TelegramRetryAfter:
            outcome = "flooded"
            raise
        finally:
            waited = (left or clock()) - began
            observer.request_done(type(method).__name__, outcome, waited)

    async def _paced(self, make_request: Send, bot: Bot, method: Method) -> Any:
        traffic = traffic_of(type(method))
        self._delivery.check_session_open(bot, method)
        bulk, edit = broadcasting.get(), None
        if traffic.kind is Kind.EDIT and self._merge_edits and not bulk:
            edit = edit_of(method, traffic)
        request = Request(make_request, bot, method, traffic, broadcast=bulk, edit=edit)
        chat = None if traffic.kind is Kind.OTHER else chat_of(method)
        if chat is None:
            return await self._delivery.unpaced(request)
        queue = self._queue(bot.id, chat, getattr(method, "business_connection_id", None))
        if traffic.kind is Kind.ACTION:
            return await self._delivery.send_or_drop(queue, request)
        if queue.holder is not None:
            self._admit(queue, request)
        self._count(1)
        try:
            return await self._delivery.send_paced(queue, request)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self._under_way += change
        self._report_queued()

    def _report_queued(self) -> None:
        if self._observer is not None:
            self._observer.queued(max(0, self._under_way - self._delivery.paced_in_flight))

    async def open(self) -> None:
        """Allow requests to wait again, after a `close`."""
        self._pacer.open()

    async def close(self, timeout: float = 5.0) -> None:
        """End all waiting requests and wait for those in progress.

        Later requests are still sent if they need not wait and the session is open.

        Args:
            timeout: Seconds to wait for the answers of requests in progress.
        """
        self._pacer.closed = True
        unsent = Counter(
            describe(entry.requests[-1])
            for queue in self._queues.values()
            for entry in queue.entries()
            if entry.requests and not entry.in_flight
        )
        for queue in self._queues.values():
            queue.abandon(_shutting_down())
        self._sleeper.interrupt(_shutting_down)
        if unsent:
            told = ", ".join(f"{what} ({n})" for what, n in unsent.most_common(_MAX_NAMED))
            more = f" and {len(unsent) - _MAX_NAMED} more chats" if len(unsent) > _MAX_NAMED else ""
            log.warning("%d requests were not sent: %s%s", unsent.total(), told, more)
        await self._pacer.close()
        await self._delivery.wait_for_answers(timeout)
        if self._delivery.in_flight:
            log.warning("%d requests have no answer yet", self._delivery.in_flight)
        if self._closes:
            await self.limiter.close()

    def _admit(self, queue: ChatQueue, request: Request) -> None:
        if queue.is_merging(request):
            return
        if self._pacer.closed:
            raise _shutting_down()
        if not waiting_allowed.get():
            raise NotSentError(
                f"{describe(request)} was not sent: other requests wait for this chat"
            )
        if queue.waiting >= self.max_waiting:
            full = f"{queue.waiting} requests wait for this chat; send less or raise per_chat"
        elif self._under_way >= 10 * self.max_waiting:
            full = (
                f"{self._under_way} requests wait in this process; send less or raise max_waiting"
            )
        else:
            return
        raise SendQueueFullError(
            f"{describe(request)} was not sent: {full} (max_waiting={self.max_waiting})"
        )

    def _queue(self, bot: int, chat: int | str, business: str | None) -> ChatQueue:
        key = (bot, chat, business)
        queue = self._queues.get(key)
        if queue is None:
            self._sweep()
            queue = self._queues[key] = ChatQueue(chat)
        return queue

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_EVERY
            idle = [key for key, queue in self._queues.items() if queue.is_idle(now)]
            for key in idle:
                del self._queues[key]


def _shutting_down() -> NotSentError:
    return NotSentError("not sent: the bot is shutting down")


def _number(name: str, value: object, least: float, expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
        raise ConfigError(f"{name}={value!r}: expected {expected}")
    return float(value)


def _count(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r}: expected a whole number from {least} up")
    return value


def _announce(limiter: Limiter, budgets: Budgets) -> None:
    if limiter.storage.source == "redis":
        log.info(
            "OutgoingLimits: Using Redis, all instances share the budgets (key prefix: %s)",
            limiter.key_prefix,
        )
    else:
        log.warning(
            "OutgoingLimits: Redis not provided, this process paces by itself. "
            "Several instances together will send more than Telegram accepts"
        )

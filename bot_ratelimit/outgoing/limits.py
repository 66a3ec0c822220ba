"""OutgoingLimits: every request of a bot passes here, and leaves when Telegram takes it."""

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

from bot_ratelimit.errors import ConfigError, NotSentError, SendQueueFullError
from bot_ratelimit.limiter import Limiter
from bot_ratelimit.may_wait import may_wait
from bot_ratelimit.observer import Observer, ObserverLike, RequestOutcome, observers_of
from bot_ratelimit.outgoing.broadcast import run
from bot_ratelimit.outgoing.budgets import Budgets
from bot_ratelimit.outgoing.delivery import Delivery, Terms, broadcasting
from bot_ratelimit.outgoing.floods import Floods, describe
from bot_ratelimit.outgoing.journal import Journal
from bot_ratelimit.outgoing.lane import Lane, Request, Send
from bot_ratelimit.outgoing.methods import Kind, Method, chat_of, edit_of, traffic_of
from bot_ratelimit.outgoing.naps import Naps
from bot_ratelimit.outgoing.pacing import Pacer
from bot_ratelimit.outgoing.progress import Progress
from bot_ratelimit.outgoing.sent import Sent
from bot_ratelimit.rule import LimitLike
from bot_ratelimit.settings import Settings
from bot_ratelimit.storage.memory import MemoryStorage
from bot_ratelimit.storage.redis import RedisStorage

if TYPE_CHECKING:
    from bot_ratelimit.storage.driver import Client

log = logging.getLogger("bot_ratelimit")

T = TypeVar("T", bound="int | str")

# A request can wait for an answer, and one that is taken for lost costs a second burst.
TIMEOUT: Final = 1.0
# Lanes of chats that nothing is remembered of are dropped now and then.
_SWEEP_EVERY: Final = 1.0
_TOLD: Final = 10


class OutgoingLimits(BaseRequestMiddleware):
    """Sends no faster than Telegram takes, in order, on all instances together.

    ::

        outgoing = OutgoingLimits(redis, "my_bot")
        outgoing.setup(bot, dispatcher)

    Args:
        redis_client: A `redis.asyncio` client. Without one each process paces by itself.
        key_prefix: What every key begins with, `<prefix>:ratelimit:bot:<bot>:out:...`.
        limiter: Use this one, and its storage and prefix, instead of making one.
        per_chat: What one chat takes; None for no limit.
        per_group: What a group or channel takes besides.
        broadcast: What everything sent inside of `broadcasting()` takes together. Messages with
            `allow_paid_broadcast` have a budget of 1000 a second instead.
        max_wait: Seconds that a request waits for a block after a 429; beyond, it raises
            `TelegramRetryAfter` at once, with the time that is left. Broadcasts wait on.
        retries: How often a request that was answered with 429 is sent again. Nothing else ever is.
        repeat_albums: Whether that holds for albums and for several messages forwarded or copied
            in one call too, of which Telegram may have delivered a part.
        merge_edits: Whether of several waiting edits of one message only the newest is sent.
        in_order: Whether a chat's next request leaves only when the one before it was answered.
        max_waiting: How many requests may wait for one chat, and ten times that in the process.
        observer: Hears of each request that is paced, of 429s, and how many wait; one or several,
            see `Observer`.
        margin: By which share of itself every period is stretched, for the unequal times that
            requests take to arrive.

    Raises:
        ConfigError: An argument makes no sense.
    """

    def __init__(
        self,
        redis_client: Client | None = None,
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
            raise ConfigError("redis_client and limiter are both given: the limiter has a storage")
        self._closes = limiter is None
        if limiter is None:
            storage = MemoryStorage() if redis_client is None else RedisStorage(redis_client)
            limiter = Limiter(storage, key_prefix=key_prefix, on_error="memory", timeout=TIMEOUT)
        self.limiter = limiter
        self._merge_edits = merge_edits
        self._naps = Naps()
        floods = self._floods = Floods(limiter, self.budgets, self._observer)
        self._pacer = Pacer(limiter, self.budgets, floods, self._naps, self.max_wait)
        terms = Terms(self.retries, self.max_wait, repeat_albums, in_order)
        self._delivery = Delivery(self._pacer, floods, self._naps, terms, self._tell_queued)
        self._lanes: dict[tuple[int, int | str, str | None], Lane] = {}
        self._sweep_at = 0.0
        self._under_way = 0
        _announce(limiter, self.budgets)

    @classmethod
    def from_settings(cls, settings: Settings | None = None, **overrides: Any) -> OutgoingLimits:
        """From the environment, `.env` and RATE_LIMIT_FILE: where Redis is, prefix and budgets.

        It closes the Redis client that it makes when it is closed itself.

        Args:
            settings: These instead of the environment.
            **overrides: Arguments of the constructor.

        Raises:
            ConfigError: A variable or an argument makes no sense.
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
        """Stand in the way of everything that this bot, or any other of its session, sends.

        Args:
            bot: The bot; bots that share a session need this once.
            dispatcher: When it shuts down, requests that wait end, before the session closes.
                Without it, call `close` yourself.
        """
        if self not in bot.session.middleware:
            bot.session.middleware(self)
        if dispatcher is not None:
            dispatcher.startup.register(self.open)
            dispatcher.shutdown.register(self.close)
        return self

    @asynccontextmanager
    async def broadcasting(self) -> AsyncIterator[None]:
        """What is sent inside takes from the broadcasts' budget too, and lets replies go first."""
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
        """Send to many chats, at the pace of the broadcasts' budget, and say what came of each.

        ::

            async for sent in outgoing.broadcast(chats, send, journal=Journal("news.txt")):
                if sent.status is Status.BLOCKED:
                    await forget(sent.chat)

        Args:
            chats: Ids, from anything that can be iterated over.
            send: Sends to one of them, with a bot that is set up; called once for each.
            journal: What was done already, and is not done again.
            progress: Counts, and shows how far it has come.
            in_flight: To how many chats it sends at a time: the budget times the seconds that a
                request takes.

        Raises:
            NotSentError: The bot is shutting down; the journal says where to go on.
        """
        _count("in_flight", in_flight, 1)
        return run(chats, send, journal=journal, progress=progress, in_flight=in_flight)

    async def __call__(self, make_request: Send, bot: Bot, method: Method) -> Any:
        """Send the request when it is its turn.

        Raises:
            NotSentError: It may not wait, or the bot is shutting down.
            SendQueueFullError: Too many wait already.
            TelegramRetryAfter: A 429 that is not waited for, or one time too many.
        """
        traffic = traffic_of(type(method))
        if traffic.kind is Kind.NEVER:
            try:
                return await make_request(bot, method)
            except TelegramRetryAfter as error:
                self._floods.met_alone(error)
                raise
        if self._observer is not None:
            return await self._watched(self._observer, make_request, bot, method)
        return await self._paced(make_request, bot, method)

    async def _watched(
        self, observer: Observer, make_request: Send, bot: Bot, method: Method
    ) -> Any:
        """Send the request, and tell the observer what came of it."""
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
        self._delivery.refuse_if_closed(bot, method)
        bulk, edit = broadcasting.get(), None
        if traffic.kind is Kind.EDIT and self._merge_edits and not bulk:
            edit = edit_of(method, traffic)
        request = Request(make_request, bot, method, traffic, broadcast=bulk, edit=edit)
        chat = None if traffic.kind is Kind.OTHER else chat_of(method)
        if chat is None:
            return await self._delivery.unpaced(request)
        lane = self._lane(bot.id, chat, getattr(method, "business_connection_id", None))
        if traffic.kind is Kind.ACTION:
            return await self._delivery.now_or_never(lane, request)
        if lane.holder is not None:
            self._admit(lane, request)
        self._count(1)
        try:
            return await self._delivery.in_turn(lane, request)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self._under_way += change
        self._tell_queued()

    def _tell_queued(self) -> None:
        if self._observer is not None:
            self._observer.queued(max(0, self._under_way - self._delivery.paced_in_flight))

    async def open(self) -> None:
        """Let requests wait again, after a `close`."""
        self._pacer.open()

    async def close(self, timeout: float = 5.0) -> None:
        """End everything that waits, and wait for what is being sent.

        Later requests still go if they need not wait and the session is open.

        Args:
            timeout: Seconds that requests which are being sent get for their answers.
        """
        self._pacer.closed = True
        unsent = Counter(
            describe(slot.requests[-1])
            for lane in self._lanes.values()
            for slot in lane.slots()
            if slot.requests and not slot.in_flight
        )
        for lane in self._lanes.values():
            lane.abandon(_ending())
        self._naps.end(_ending)
        if unsent:
            told = ", ".join(f"{what} ({n})" for what, n in unsent.most_common(_TOLD))
            more = f" and {len(unsent) - _TOLD} more chats" if len(unsent) > _TOLD else ""
            log.warning("%d requests were not sent: %s%s", unsent.total(), told, more)
        await self._pacer.close()
        await self._delivery.landed(timeout)
        if self._delivery.in_flight:
            log.warning("%d requests have no answer yet", self._delivery.in_flight)
        if self._closes:
            await self.limiter.close()

    def _admit(self, lane: Lane, request: Request) -> None:
        if lane.is_merging(request):
            return
        if self._pacer.closed:
            raise _ending()
        if not may_wait.get():
            raise NotSentError(f"{describe(request)} was not sent: others wait for this chat")
        if lane.waiting >= self.max_waiting:
            whose = f"for chat {lane.chat}; give per_chat more or send less"
        elif self._under_way >= 10 * self.max_waiting:
            whose = "in this process; send less or raise max_waiting"
        else:
            return
        raise SendQueueFullError(
            f"{describe(request)} was not sent: {max(lane.waiting, self._under_way)} requests wait "
            f"{whose} (max_waiting={self.max_waiting})"
        )

    def _lane(self, bot: int, chat: int | str, business: str | None) -> Lane:
        key = (bot, chat, business)
        lane = self._lanes.get(key)
        if lane is None:
            self._sweep()
            lane = self._lanes[key] = Lane(chat)
        return lane

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_EVERY
            idle = [key for key, lane in self._lanes.items() if lane.is_idle(now)]
            for key in idle:
                del self._lanes[key]


def _ending() -> NotSentError:
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
            "Several instances together will send more than Telegram takes"
        )

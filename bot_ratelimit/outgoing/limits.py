"""OutgoingLimits: paces the requests of a bot, so that Telegram accepts them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
)
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from weakref import WeakSet

from aiogram import Bot, Dispatcher
from aiogram.client.session.middlewares.base import BaseRequestMiddleware
from aiogram.exceptions import TelegramAPIError

from bot_ratelimit.config.settings import Settings
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.limiter.observer import ObserverLike, observers_of
from bot_ratelimit.limiter.waiting_allowed import patience
from bot_ratelimit.outgoing.arguments import (
    MAX_WAIT,
    TIMEOUT,
    check_broadcast,
    check_setup,
    limiter_of,
    max_waits,
)
from bot_ratelimit.outgoing.broadcast import Broadcast
from bot_ratelimit.outgoing.budgets import Budgets
from bot_ratelimit.outgoing.chat_queue import ChatQueue, Request, Send
from bot_ratelimit.outgoing.delivery import Delivery
from bot_ratelimit.outgoing.drafts import Drafts, DraftStream
from bot_ratelimit.outgoing.floods import Floods, flood_wait
from bot_ratelimit.outgoing.journal import Journal
from bot_ratelimit.outgoing.methods import Kind, Method, chat_of, edit_of, traffic_of
from bot_ratelimit.outgoing.pace import Pace
from bot_ratelimit.outgoing.pacing import Pacer, shutting_down
from bot_ratelimit.outgoing.permits import Permits
from bot_ratelimit.outgoing.progress import Progress
from bot_ratelimit.outgoing.queues import Queues, key_of
from bot_ratelimit.outgoing.report import Report
from bot_ratelimit.outgoing.scope import BroadcastScope, broadcast_scope
from bot_ratelimit.outgoing.sent import Sent
from bot_ratelimit.outgoing.stars import Stars
from bot_ratelimit.rules.checks import check_flag, check_whole
from bot_ratelimit.rules.rule import LimitLike

if TYPE_CHECKING:
    from bot_ratelimit.storage.redis.driver import Client

log = logging.getLogger("bot_ratelimit")

T = TypeVar("T", bound="int | str")


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
        drafts: The limit of the drafts in one chat, which are not messages; None for no limit.
        max_wait: Seconds that a request waits for a block after a 429, or seconds by kind:
            `{"message": 60, "edit": 5, "draft": 5, "method": 30}`. If the block lasts longer, the
            request raises `TelegramRetryAfter` at once, with the rest of the block. Broadcasts wait
            as long as it takes, and `waiting_up_to` says it for single requests.
        retries: How often a request that was answered with 429 is sent again. No other request is
            ever sent again.
        repeat_albums: Whether albums, and several messages forwarded or copied in one call, are
            also sent again. Telegram may have delivered a part of them.
        merge_edits: Whether only the newest of several waiting edits of one message is sent.
        in_order: Whether the next request of a chat is sent only when the one before it is
            answered.
        max_waiting: How many requests may wait for one chat; behind others of a chat, while ten
            times as many wait in the process, none does.
        observer: One or several observers of paced requests, 429s and the number of waiting
            requests; see `Observer`.
        margin: By how much every period is made longer, as a share from 0 to 1: requests do not all
            take the same time to arrive.
        statistics: Whether operators see what is sent, what waits, blocks and broadcasts, on all
            instances; with a `limiter`, by default if that keeps statistics.

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
        drafts: LimitLike | None = "1/s burst 10",
        max_wait: float | Mapping[str, float] = MAX_WAIT,
        retries: int = 3,
        repeat_albums: bool = False,
        merge_edits: bool = True,
        in_order: bool = True,
        max_waiting: int = 1_000,
        margin: float = 0.02,
        observer: ObserverLike = None,
        statistics: bool | None = None,
    ) -> None:
        budgets = self.budgets = Budgets(per_chat, per_group, broadcast, drafts, margin)
        self.max_wait: Final = max_waits(max_wait)
        self.retries = check_whole("retries", retries, 0)
        self._closes = limiter is None
        self.limiter = limiter_of(redis_client, key_prefix, limiter)
        if statistics is None:
            statistics = self.limiter.keeps_statistics
        self._report = None
        if check_flag("statistics", statistics):
            self._report = Report(self.limiter, self._look)
            observer = observers_of(observer, self._report, self._report.statistics)
        self._observer = observers_of(observer)
        self._progresses: WeakSet[Progress] = WeakSet()
        self._is_set_up = False
        self._merge_edits = check_flag("merge_edits", merge_edits)
        self._queues = Queues()
        permits = self._permits = Permits(self.limiter)
        floods = self._floods = Floods(permits, budgets, self._observer)
        pacer = self._pacer = Pacer(permits, budgets, floods, self.max_wait)
        self._delivery = Delivery(
            *(pacer, floods, self._queues, self._observer),
            retries=self.retries,
            repeat_albums=check_flag("repeat_albums", repeat_albums),
            in_order=check_flag("in_order", in_order),
            max_waiting=check_whole("max_waiting", max_waiting, 1),
        )
        self._drafts = Drafts(
            pacer, floods, self._delivery.send, budgets.draft_gap, self.max_wait[Kind.DRAFT]
        )

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
        if overrides.get("limiter") is not None:
            return cls(**overrides)
        overrides.pop("limiter", None)
        prefix = overrides.pop("key_prefix", settings.redis_key_prefix)
        if "redis_client" in overrides:
            return cls(key_prefix=prefix, **overrides)
        limiter = Limiter(settings.storage(), key_prefix=prefix, on_error="memory", timeout=TIMEOUT)
        limits = cls(limiter=limiter, **overrides)
        limits._closes = True
        return limits

    def setup(self, bot: Bot, dispatcher: Dispatcher | None = None) -> OutgoingLimits:
        """Pace everything that this bot sends, and all other bots that share its session.

        Args:
            bot: The bot. Bots that share a session need only one call.
            dispatcher: At its shutdown, waiting requests end before the session closes. Without it,
                call `close` yourself. Each dispatcher needs OutgoingLimits of its own. If a user
                stops an answer (`stopped_message_generation`), its waiting drafts are dropped.

        Returns:
            This object.

        Raises:
            ConfigError: These are not a Bot and a Dispatcher, or the bot has other OutgoingLimits.
        """
        check_setup(bot, dispatcher)
        found = [each for each in bot.session.middleware if isinstance(each, OutgoingLimits)]
        if found and self not in found:
            raise ConfigError(f"setup: bot {bot.id} already has OutgoingLimits; use those")
        if not found:
            bot.session.middleware(self)
        self._is_set_up = True
        if dispatcher is not None and all(
            each.callback != self._on_shutdown for each in dispatcher.shutdown.handlers
        ):
            dispatcher.startup.register(self.open)
            dispatcher.shutdown.register(self._on_shutdown)
            if (stops := getattr(dispatcher, "stopped_message_generation", None)) is not None:
                stops.outer_middleware.register(self._queues.on_stop)
        return self

    @asynccontextmanager
    async def broadcasting(self) -> AsyncIterator[None]:
        """Let what is sent inside also take from the broadcast budget, and let replies go first."""
        token = broadcast_scope.set(broadcast_scope.get() or BroadcastScope())
        try:
            yield
        finally:
            broadcast_scope.reset(token)

    def broadcast(
        self,
        chats: Iterable[T] | AsyncIterable[T],
        send: Callable[[T], Awaitable[Any]],
        *,
        journal: Journal | None = None,
        progress: Progress | None = None,
        in_flight: int = 50,
        stars: float | None = None,
        when_spent: Literal["unpaid", "stop"] = "unpaid",
    ) -> AsyncGenerator[Sent[T], None]:
        """Send to many chats at the pace of the broadcast budget, and yield the outcome for each.

        ::

            async for sent in outgoing.broadcast(chats, send, journal=Journal("news.txt")):
                if sent.status is Status.BLOCKED:
                    await forget(sent.chat)

        Args:
            chats: Ids, each of them once, from any iterable or async iterable.
            send: Sends to one chat, with a bot that is set up; again only if the chat got nothing.
            journal: Records what was done, so that the next run does not repeat it.
            progress: Counts outcomes and shows the progress.
            in_flight: How many chats are sent to at the same time: the budget per second times the
                seconds that a request takes.
            stars: How many Stars the messages with `allow_paid_broadcast` may cost; None for no
                bound. The first 30 a second are free, and each further one costs 0.1 Stars.
            when_spent: When the Stars are spent, send the rest unpaid, or stop.

        Raises:
            NotSentError: The bot is shutting down; the journal says where to continue.
            ConfigError: An argument is invalid, or another broadcast uses the journal.
        """
        check_broadcast(chats, send, journal, progress)
        check_whole("in_flight", in_flight, 1)
        progress = progress or Progress()
        self._progresses.add(progress)
        paid, is_set_up = Stars(stars, when_spent), self._is_set_up
        broadcast = Broadcast(send, journal, progress, paid, self._pacer, is_set_up=is_set_up)
        return broadcast.run(chats, in_flight)

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
            except TelegramAPIError as error:
                self._floods.report_unpaced(error)
                raise
        scope = broadcast_scope.get()
        if traffic.kind in (Kind.DRAFT, Kind.ACTION):
            scope = None  # decoration is not what a broadcast delivers
        request = Request(make_request, bot, method, traffic, scope, patience.get())
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            return await self._paced(request)
        except Exception as error:
            if scope is not None:
                scope.error = error
            if flood_wait(error) is not None:
                request.outcome = "flooded"
            raise
        finally:
            waited = (request.left_at or clock()) - began
            self._observer.request_done(type(method).__name__, request.outcome, waited)

    async def _paced(self, request: Request) -> Any:
        method, kind = request.method, request.traffic.kind
        self._delivery.check_session_open(request.bot, method)
        key = key_of(request, chat_of(method))
        if kind is Kind.DRAFT:
            return await self._drafts.show(self._queues.find(key, DraftStream), request)
        if kind is Kind.ACTION:
            return await self._delivery.send_or_drop(self._queues.find(key, Pace), request)
        edit = None
        if kind is Kind.EDIT and self._merge_edits and not request.broadcast and request.may_wait:
            edit = edit_of(method, request.traffic)
        return await self._delivery.send_paced(self._queues.find(key, ChatQueue), request, edit)

    def _look(self) -> dict[str, Any]:
        """What operators see of this process; nothing after `close`."""
        if self._pacer.closed:
            return {}
        return {
            "waiting": self._delivery.waiting,
            "blocks": self._floods.in_force(),
            "broadcasts": [each.report() for each in self._progresses if each.is_running],
        }

    async def open(self) -> None:
        """Allow requests to wait again, after a `close`."""
        self._pacer.closed = self._permits.closed = False

    async def _on_shutdown(self) -> None:
        await self.close()  # aiogram would pass dp["timeout"] on to a parameter of that name

    async def close(self, timeout: float = 5.0) -> None:
        """End all waiting requests and wait for those in progress.

        Later requests are still sent if they need not wait, the session is open, and they are not
        part of a broadcast.

        Args:
            timeout: Seconds to wait for the answers of requests in progress.
        """
        self._pacer.close()
        if unsent := self._queues.abandon(shutting_down()):
            log.warning("%s", unsent)
        self._permits.closed = True
        await self._delivery.wait_for_answers(timeout)
        if self._delivery.in_flight:
            log.warning("%d requests have no answer yet", self._delivery.in_flight)
        if self._report is not None:
            await self._report.end()
        if self._closes:
            await self.limiter.close()

"""Delivery: sends a request when it has its turn and its permits, and again after a 429."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Hashable
from typing import Any, Final

from aiogram import Bot
from aiogram.exceptions import TelegramAPIError

from bot_ratelimit.errors import NotSentError, SendQueueFullError
from bot_ratelimit.limiter.observer import Observers
from bot_ratelimit.outgoing.chat_queue import OVERTAKE_AFTER, ChatQueue, Edits, Entry, Request
from bot_ratelimit.outgoing.floods import Floods, describe, flood_wait, retry_after
from bot_ratelimit.outgoing.methods import Method
from bot_ratelimit.outgoing.pace import Pace
from bot_ratelimit.outgoing.pacing import Pacer, Permit, ShuttingDownError, shutting_down
from bot_ratelimit.outgoing.queues import Queues
from bot_ratelimit.outgoing.sent import was_refused

_LOOK_EVERY: Final = 0.05  # whether Telegram has answered
_DRAFTS_FIRST: Final = 1.0
"""Seconds that a message waits for a draft on its way: shown later, it would stay beside it."""


class Delivery:
    """Sends requests to Telegram."""

    def __init__(
        self,
        pacer: Pacer,
        floods: Floods,
        queues: Queues,
        observer: Observers,
        *,
        retries: int,
        repeat_albums: bool,
        in_order: bool,
        max_waiting: int,
    ) -> None:
        self.in_flight = 0
        """The number of requests that Telegram has not answered yet."""
        self.waiting = 0
        """The number of paced requests that have not left yet."""
        self._pacer = pacer
        self._floods = floods
        self._queues = queues
        self._observer = observer
        self._retries = retries
        self._repeat_albums = repeat_albums
        self._max_waiting = max_waiting
        self._overtake_after = OVERTAKE_AFTER if in_order else 0.0

    async def send_paced(self, queue: ChatQueue, request: Request, edit: Hashable = None) -> Any:
        """Send in turn, or return the outcome of a newer edit that was sent instead.

        Args:
            queue: The queue of the chat.
            request: The request.
            edit: Which message it edits; None if no other request can replace it.

        Raises:
            NotSentError: It may not wait, or the bot is shutting down.
            SendQueueFullError: Too many requests wait.
            TelegramRetryAfter: A block lasts longer than the request waits.
        """
        self._check_can_join(queue, request, edit)
        self._count(1)
        queue.users += 1
        try:
            if edit is not None:
                return await self._send_edit(queue, request, edit)
            if queue.key.chat == "" and queue.holder is None and not queue.is_cautious(_now()):
                # A method of no chat is sent beside others; after a 429 all are sent in turn.
                try:
                    permit = await self._pacer.take(queue, request)
                    sent, result = await self._attempt(queue, request, permit)
                finally:
                    queue.leave(request)  # a broadcast has joined if it waited for a block
                if sent:
                    return result
            queue.join(request)
            try:
                async with asyncio.timeout_at(request.deadline):
                    await queue.turn(request)
            except TimeoutError:
                raise _too_late(request) from None
            return await self._deliver(queue, request)
        finally:
            queue.users -= 1
            self._count(-1)

    async def send_or_drop(self, pace: Pace, request: Request) -> Any:
        """Send a chat action now, or drop it: it describes what the bot does at this moment."""
        if await self._pacer.try_once(pace) > 0:
            return True
        try:
            return await self.send(request)
        except TelegramAPIError as error:
            if (seconds := flood_wait(error)) is None:
                raise
            await self._floods.on_flood(pace, request, seconds)
            return True

    async def send(self, request: Request) -> Any:
        """Send a request now."""
        self.in_flight += 1
        try:
            if (drafts := self._queues.before_sending(request)) and request.may_wait:
                left = math.inf if request.deadline is None else request.deadline - _now()
                await asyncio.wait(drafts, timeout=max(0.0, min(_DRAFTS_FIRST, left)))
            self.check_session_open(request.bot, request.method)
            if request.broadcast is not None:
                if self._pacer.closed:  # a later run sends to the other chats
                    raise shutting_down(f"{describe(request)} was ")
                request.broadcast.leaving()
            request.left_at, request.outcome = _now(), "failed"
            result = await request.send(request.bot, request.method)
        except TelegramAPIError as error:
            if flood_wait(error) is not None:
                request.outcome = "flooded"  # unless it is sent again; an action never is
            raise
        else:
            request.outcome = "sent"
            return result
        finally:
            self.in_flight -= 1

    async def wait_for_answers(self, timeout: float) -> None:
        """Wait until Telegram has answered everything, for `timeout` seconds at most."""
        until = _now() + timeout
        while self.in_flight and (left := until - _now()) > 0:  # noqa: ASYNC110 - an Event belongs to one loop
            await asyncio.sleep(min(_LOOK_EVERY, left))

    def check_session_open(self, bot: Bot, method: Method) -> None:
        """Raise NotSentError if the session is closed: a request would open it again for good."""
        if self._pacer.closed and _is_closed(bot.session):
            raise ShuttingDownError(
                f"{method.__api_method__} was not sent: the session of the bot is closed"
            )

    def _check_can_join(self, queue: ChatQueue, request: Request, edit: Hashable) -> None:
        """Raise an error if the request cannot wait."""
        if queue.holder is not None:
            if self._pacer.closed:
                raise shutting_down()
            if not request.may_wait:
                raise NotSentError(f"{describe(request)} was not sent: others wait for this chat")
        if queue.holder is None or queue.replaceable(request, edit) is not None:
            return  # it does not wait for others, or in the place of one of them
        blocked = self._floods.blocked_for(queue)
        if not self._pacer.may_repeat(queue, request, blocked):  # the holder is more patient
            raise retry_after(request, blocked)
        most = self._max_waiting
        if self.waiting >= 10 * most:
            full = f"{self.waiting} requests wait in this process; send less or raise max_waiting"
        elif queue.waiting >= most:
            full = f"{queue.waiting} requests wait for this chat; send less or raise per_chat"
        else:
            return
        raise SendQueueFullError(f"{describe(request)} was not sent: {full} (max_waiting={most})")

    async def _send_edit(self, queue: ChatQueue, request: Request, edit: Hashable) -> Any:
        """Send an edit, or wait for the outcome of a newer one of the same message."""
        edits = queue.replaceable(request, edit)
        if edits is None:
            edits = queue.edits[edit] = Edits(edit, [request])
            queue.join(edits)
            edits.task = asyncio.create_task(self._deliver(queue, edits))
            # A task that is cancelled before it has begun runs no code.
            edits.task.add_done_callback(lambda _: queue.leave(edits))
        else:
            edits.requests.append(request)
        try:
            async with asyncio.timeout_at(request.deadline):
                await asyncio.wait([edits.task])
        except TimeoutError:
            while edits.in_flight:  # after a 429 the others may go on waiting
                await asyncio.wait([edits.task], timeout=_LOOK_EVERY)
            if not edits.task.done():
                raise _too_late(request) from None
        finally:
            if len(edits.requests) > 1:
                edits.requests.remove(request)
            else:  # nobody waits for it any more
                queue.seal(edits)  # a newer edit must not join what ends
                edits.task.cancel()
        result = edits.task.result()
        request.outcome = "sent"  # itself, or a newer edit in its place
        return result

    async def _deliver(self, queue: ChatQueue, entry: Entry) -> Any:
        """Wait for the turn, take a permit and send; repeat this after a 429."""
        try:
            await queue.turn(entry)
            while True:
                permit = await self._pacer.take(queue, entry)
                queue.seal(entry)
                sent, result = await self._attempt(queue, entry, permit)
                if sent:
                    return result
                queue.reopen(entry)
                await self._pacer.retake_turn(queue, entry)
        finally:
            queue.leave(entry)

    async def _attempt(self, queue: ChatQueue, entry: Entry, permit: Permit) -> tuple[bool, Any]:
        """Send once; return whether the request was accepted, and its result.

        If the answer is late, the next request of the chat does not wait for it.

        Raises:
            Exception: Telegram's error, if the request must not be sent again.
        """
        request, loop = entry.newest, asyncio.get_running_loop()
        timer = loop.call_later(self._overtake_after, queue.release, entry)
        entry.in_flight = True
        self._count(-1)
        try:
            result = await self.send(request)
        except TelegramAPIError as error:
            seconds = flood_wait(error)
            is_final = bool(request.traffic.items) and not self._repeat_albums
            if request.broadcast is not None:
                request.broadcast.floods += seconds is not None
                # Of an album that met a 429, a part may have been delivered.
                if was_refused(error) and not (seconds and is_final):
                    request.broadcast.refused()
            if seconds is None:
                raise
            await self._floods.on_flood(queue, request, seconds, quiet=permit.quiet)
            request.attempts += 1
            if is_final or request.attempts > self._retries:
                raise
            if not self._pacer.may_repeat(queue, entry, seconds):
                raise
            return False, None
        finally:
            timer.cancel()
            entry.in_flight = False
            self.waiting += 1
        self._pacer.answered(queue, permit)
        return True, result

    def _count(self, change: int) -> None:
        self.waiting += change
        if self._observer.each:
            self._observer.queued(self.waiting)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _too_late(request: Request) -> NotSentError:
    return NotSentError(
        f"{describe(request)} was not sent: other requests to this chat, or a 429, came first"
    )


def _is_closed(session: Any) -> bool:
    """Whether an aiohttp session was closed; aiogram has no public attribute for this."""
    client = getattr(session, "_session", None)
    return client is not None and bool(getattr(client, "closed", False))

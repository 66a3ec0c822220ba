"""Floods: what a 429 blocks, for how long, and how the pace continues, on all instances."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from typing import Final

from aiogram.exceptions import TelegramRetryAfter

from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.limiter.observer import Observer
from bot_ratelimit.outgoing.budgets import Budgets, subject_of
from bot_ratelimit.outgoing.chat_queue import ChatQueue, Request
from bot_ratelimit.outgoing.permits import Permits
from bot_ratelimit.rules.penalty import Penalty

log = logging.getLogger("bot_ratelimit")

CAUTIOUS_FOR: Final = 60.0
"""Seconds after a block in which its chat has half the pace, because the normal pace was too
fast."""
_SLOWEST: Final = 5
# If this many quiet chats are refused within a second, the limit is the bot's and not the chats'.
_MANY: Final = 3
_TOGETHER: Final = 1.0
# One line for each 429 would flood the log.
_LOG_EVERY: Final = 5.0


class Floods:
    """Remembers what Telegram has blocked.

    A block is a key in the storage. Each instance reads it in the same command that takes a permit,
    so that an instance need not get a 429 itself to learn of it. This process also remembers its
    own 429s, in case the storage is unreachable.

    Args:
        permits: Stores the blocks.
        budgets: The rules that read the blocks.
        observer: Is told of each 429.
    """

    def __init__(
        self, permits: Permits, budgets: Budgets, observer: Observer | None = None
    ) -> None:
        self._observer = observer
        self._permits = permits
        self._budgets = budgets
        self._bots: dict[int, float] = {}
        self._fresh: deque[tuple[float, int, int | str]] = deque(maxlen=_MANY)
        self._log_again = 0.0

    def blocked_for(self, queue: ChatQueue, bot: int) -> float:
        """Seconds until the blocks that this process knows of end; 0.0 or less without a block."""
        now = asyncio.get_running_loop().time()
        return max(queue.blocked_until, self._bots.get(bot, 0.0)) - now

    def note_refusal(self, queue: ChatQueue, bot: int, decision: Decision) -> bool:
        """Record a refusal; return True if a block refused, and False if a budget is used up."""
        if not decision.banned or not isinstance(decision.rule, Penalty):
            return False
        if decision.rule.path == self._budgets.bot_block.path:
            self._block_bot(bot, decision.retry_after)
        else:
            self._block_chat(queue, decision.retry_after)
        return True

    async def on_retry_after(
        self, queue: ChatQueue | None, request: Request, error: TelegramRetryAfter, *, fresh: bool
    ) -> None:
        """Block the chat or the whole bot for as long as Telegram says.

        Args:
            queue: The queue of the chat; None for a request to no chat.
            request: The request that Telegram refused.
            error: Telegram's answer.
            fresh: Whether the chat had been quiet, so that its own limit cannot be the reason.
        """
        bot, seconds = request.bot.id, float(error.retry_after)
        whole_bot = queue is None or (fresh and self._many_chats_refused(bot, queue))
        self._log(request, queue, seconds, whole_bot)
        if self._observer is not None:
            self._observer.flood_waited("bot" if whole_bot else "chat", seconds)
        if queue is not None:
            self._block_chat(queue, seconds)
            subject = subject_of(bot, queue.chat, _business(request))
            rule = self._budgets.chat_block(queue.chat)
            await self._permits.block(rule, subject, seconds)
        if whole_bot:
            self._block_bot(bot, seconds)
            rule, subject = self._budgets.bot_block, subject_of(bot, "", None)
            await self._permits.block(rule, subject, seconds)

    def report_method(self, error: TelegramRetryAfter) -> None:
        """Report a 429 of a method without a permit to the observers; it blocks nothing else."""
        if self._observer is not None:
            self._observer.flood_waited("method", float(error.retry_after))

    def _block_chat(self, queue: ChatQueue, seconds: float) -> None:
        now = asyncio.get_running_loop().time()
        if queue.blocked_until <= now:  # a new block, not another 429 of the same one
            queue.slow = min(queue.slow + 1, _SLOWEST) if now < queue.slow_until else 1
        queue.blocked_until = max(queue.blocked_until, now + seconds)
        queue.slow_until = queue.blocked_until + CAUTIOUS_FOR
        queue.idle_until = max(queue.idle_until, queue.slow_until)

    def _block_bot(self, bot: int, seconds: float) -> None:
        until = asyncio.get_running_loop().time() + seconds
        self._bots[bot] = max(self._bots.get(bot, 0.0), until)

    def _many_chats_refused(self, bot: int, queue: ChatQueue) -> bool:
        """Whether several quiet chats were refused at about the same time."""
        now = asyncio.get_running_loop().time()
        others = {chat for _, whose, chat in self._fresh if whose == bot}
        if queue.chat not in others:
            self._fresh.append((now, bot, queue.chat))
        recent = [1 for at, whose, _ in self._fresh if whose == bot and now - at <= _TOGETHER]
        return len(recent) >= _MANY

    def _log(
        self, request: Request, queue: ChatQueue | None, seconds: float, whole_bot: bool
    ) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._log_again:
            return
        self._log_again = now + _LOG_EVERY
        log.warning(
            "Telegram refused %s (429): %s sends nothing for %.0f s, on all instances",
            describe(request),
            "this bot" if whole_bot or queue is None else f"to chat {queue.chat} this bot",
            seconds,
        )


def retry_after(request: Request, seconds: float) -> TelegramRetryAfter:
    """The error that Telegram would have answered with."""
    return TelegramRetryAfter(
        request.method,
        "still blocked by an earlier 429; Telegram was not asked",
        math.ceil(seconds),
    )


def describe(request: Request) -> str:
    """Describe a request for logs and errors: `sendMessage to chat 42`."""
    name = request.method.__api_method__
    chat = getattr(request.method, "chat_id", None)
    return name if chat is None else f"{name} to chat {chat}"


def _business(request: Request) -> str | None:
    return getattr(request.method, "business_connection_id", None)

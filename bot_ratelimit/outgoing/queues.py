"""Queues: what is known of each chat, as long as it matters."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Final, TypeVar

from aiogram.types import Message
from cachetools import LRUCache

from bot_ratelimit.outgoing.chat_queue import ChatQueue
from bot_ratelimit.outgoing.drafts import DraftStream
from bot_ratelimit.outgoing.methods import Kind
from bot_ratelimit.outgoing.pace import Pace, PaceKey

P = TypeVar("P", bound=Pace)

# Idle queues are dropped about once in this many seconds.
_SWEEP_EVERY: Final = 1.0
_MAX_NAMES: Final = 10_000


class Queues:
    """The queues, draft streams and paces of all bots and chats, made when they are needed."""

    def __init__(self) -> None:
        self._paces: dict[PaceKey, Pace] = {}
        self._ids: LRUCache[tuple[int, str], int] = LRUCache(_MAX_NAMES)
        """The ids of chats that were named `@name`, by bot and name."""
        self._sweep_at = 0.0

    def __iter__(self) -> Iterator[ChatQueue]:
        return (pace for pace in self._paces.values() if isinstance(pace, ChatQueue))

    def __len__(self) -> int:
        return len(self._paces)

    def queue(self, key: PaceKey) -> ChatQueue:
        """The queue of a chat's messages, or of its calls of one method.

        A name leads to the queue of its id, once the id is known and nothing waits under the name.
        """
        if isinstance(key.chat, str) and (number := self._ids.get((key.bot, key.chat))):
            named = self._paces.get(key)
            if not isinstance(named, ChatQueue) or named.holder is None:
                key = key._replace(chat=number)
        return self._find(key, ChatQueue)

    def drafts(self, key: PaceKey) -> DraftStream:
        """The drafts of a chat."""
        return self._find(key._replace(kind=Kind.DRAFT), DraftStream)

    def actions(self, key: PaceKey) -> Pace:
        """The pace of a chat's actions."""
        return self._find(key, Pace)

    def known_drafts(self, key: PaceKey) -> DraftStream | None:
        """The drafts of a chat, if there are any."""
        found = self._paces.get(key._replace(kind=Kind.DRAFT))
        return found if isinstance(found, DraftStream) else None

    def learn(self, queue: ChatQueue, result: Any) -> None:
        """Learn from a sent message which id its chat has: `@name` and the id share a budget."""
        message = result[0] if isinstance(result, list) and result else result
        if not isinstance(message, Message):
            return
        number, name = message.chat.id, getattr(message.chat, "username", None)
        for each in {queue.key.chat, f"@{name.lower()}" if name else None}:
            if isinstance(each, str) and each.startswith("@"):
                self._ids[queue.key.bot, each] = number
                named = self._paces.get(queue.key._replace(chat=each))
                if named is not None and named.chat != number:
                    named.rename(number)

    def _find(self, key: PaceKey, make: type[P]) -> P:
        found = self._paces.get(key)
        if found is None:
            self._sweep()
            found = self._paces[key] = make(key)
        return found  # type: ignore[return-value]  # a key has one kind, and a kind one class

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_EVERY
            for key in [key for key, pace in self._paces.items() if pace.is_idle(now)]:
                del self._paces[key]

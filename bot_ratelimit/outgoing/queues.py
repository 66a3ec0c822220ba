"""Queues: what is known of each chat, as long as it matters."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from bot_ratelimit.errors import NotSentError
from bot_ratelimit.outgoing.chat_queue import ChatQueue, Request
from bot_ratelimit.outgoing.drafts import DraftStream
from bot_ratelimit.outgoing.floods import describe
from bot_ratelimit.outgoing.methods import Kind, chat_of, is_group, topic_of
from bot_ratelimit.outgoing.pace import Pace, PaceKey

P = TypeVar("P", bound=Pace)

# Idle queues are dropped about once in this many seconds.
_SWEEP_EVERY: Final = 1.0
_MAX_NAMED: Final = 10


class Queues:
    """The queues, draft streams and paces of all bots and chats, made when they are needed."""

    def __init__(self) -> None:
        self._paces: dict[PaceKey, Pace] = {}
        self._sweep_at = 0.0

    def __len__(self) -> int:
        return len(self._paces)

    def find(self, key: PaceKey, make: type[P]) -> P:
        """The pace of this key, made if it is needed; its kind says of which class it is."""
        self._sweep()
        found = self._paces.get(key)
        if found is None:
            found = self._paces[key] = make(key)
        return found  # type: ignore[return-value]  # a key has one kind, and a kind one class

    def before_sending(self, request: Request) -> list[asyncio.Future[None]]:
        """A message to a topic replaces its drafts; return those that are on their way."""
        chat = chat_of(request.method)
        if request.traffic.kind is Kind.MESSAGE and chat is not None:
            return self.drop_drafts(key_of(request, chat), topic_of(request.method))
        return []

    async def on_stop(
        self, handler: Callable[..., Awaitable[Any]], event: Any, data: dict[str, Any]
    ) -> Any:
        """Drop the waiting texts of an answer that its user has stopped; an aiogram middleware."""
        key = PaceKey(data["bot"].id, Kind.DRAFT, event.chat.id)
        self.drop_drafts(key, event.message_thread_id, event.draft_id)
        return await handler(event, data)

    def drop_drafts(
        self, key: PaceKey, topic: int | None, draft_id: int | None = None
    ) -> list[asyncio.Future[None]]:
        """See `DraftStream.drop`."""
        stream = self._paces.get(key._replace(kind=Kind.DRAFT))
        return stream.drop(topic, draft_id) if isinstance(stream, DraftStream) else []

    def abandon(self, error: NotSentError) -> str:
        """Fail all requests that wait; describe for the log what was not sent."""
        queues = [pace for pace in self._paces.values() if isinstance(pace, ChatQueue)]
        unsent = Counter(describe(request) for queue in queues for request in queue.unsent())
        for queue in queues:
            queue.abandon(error)
        if not unsent:
            return ""
        told = ", ".join(f"{what} ({n})" for what, n in unsent.most_common(_MAX_NAMED))
        more = f" and {len(unsent) - _MAX_NAMED} more chats" if len(unsent) > _MAX_NAMED else ""
        return f"{unsent.total()} requests were not sent: {told}{more}"

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_EVERY
            for key in [key for key, pace in self._paces.items() if pace.is_idle(now)]:
                del self._paces[key]


def key_of(request: Request, chat: int | str | None) -> PaceKey:
    """Which pace a request has: that of its kind in its chat, or that of its method."""
    kind, method, where = request.traffic.kind, request.method, "" if chat is None else chat
    business = getattr(method, "business_connection_id", None)
    if kind is Kind.EDIT or (kind is Kind.SERVICE and where and is_group(where)):
        kind = Kind.MESSAGE
    if chat is None or kind in (Kind.SERVICE, Kind.METHOD):
        name = method.__api_method__
        return PaceKey(request.bot.id, Kind.METHOD, where, business, name)
    return PaceKey(request.bot.id, kind, where, business)

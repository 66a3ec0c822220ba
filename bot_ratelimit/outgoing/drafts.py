"""Drafts: the growing text of an answer, of which only the newest state matters."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiogram.exceptions import AiogramError, TelegramAPIError

from bot_ratelimit.outgoing.chat_queue import Request
from bot_ratelimit.outgoing.floods import Floods, flood_wait
from bot_ratelimit.outgoing.methods import draft_of
from bot_ratelimit.outgoing.pace import Pace, PaceKey
from bot_ratelimit.outgoing.pacing import Pacer

log = logging.getLogger("bot_ratelimit")


@dataclass(slots=True)
class Draft:
    """One draft: its newest text, and who is about to send it."""

    newest: Request | None = None
    """What is still to be sent; None if nothing is."""
    busy: bool = False
    """Whether a caller or a background task sends the newest text."""
    next_at: float = 0.0
    on_its_way: asyncio.Future[None] | None = None
    """Done when Telegram has answered; None if nothing is on its way."""


class DraftStream(Pace):
    """The drafts of one bot in one chat, by topic and `draft_id`; they share a budget."""

    __slots__ = ("drafts",)

    def __init__(self, key: PaceKey) -> None:
        super().__init__(key)
        self.drafts: dict[tuple[int | None, int], Draft] = {}

    def drop(self, topic: int | None, draft_id: int | None = None) -> list[asyncio.Future[None]]:
        """Forget what waits in a topic, of one draft or of all; return what is on its way."""
        on_their_way = []
        for (where, which), draft in self.drafts.items():
            if where == topic and draft_id in (None, which):
                draft.newest = None
                if draft.on_its_way is not None:
                    on_their_way.append(draft.on_its_way)
                    draft.on_its_way = None  # only one message waits for it
        return on_their_way

    def is_idle(self, now: float) -> bool:
        """See `Pace.is_idle`."""
        self.drafts = {k: d for k, d in self.drafts.items() if d.busy or now < d.next_at}
        return not self.drafts and super().is_idle(now)


class Drafts:
    """Sends drafts. A caller never waits for a budget or a block.

    A text that cannot be sent now is kept, and sent in the background as soon as it can be; a newer
    text replaces it, and a message to the topic makes it obsolete.

    Args:
        pacer: Takes their permits.
        floods: Handles 429s.
        send: Sends a request now.
        gap: Seconds between two texts of one draft.
        max_wait: Texts are dropped while a block lasts for more than this many seconds.
    """

    def __init__(
        self,
        pacer: Pacer,
        floods: Floods,
        send: Callable[[Request], Awaitable[Any]],
        gap: float,
        max_wait: float,
    ) -> None:
        self._pacer = pacer
        self._floods = floods
        self._send = send
        self._gap = gap
        self._max_wait = max_wait
        self._tasks: set[asyncio.Task[None]] = set()

    async def show(self, stream: DraftStream, request: Request) -> Any:
        """Send a draft, or keep it for later; return Telegram's answer, or True."""
        key = draft_of(request.method)
        draft = stream.drafts.setdefault(key, Draft())
        draft.newest = request
        if self._floods.blocked_for(stream) <= self._max_wait:
            request.outcome = "sent"  # as soon as it can be, or a newer text in its place
        if draft.busy:
            return True
        draft.busy = True
        try:
            return self._wait(stream, draft) > 0 or await self._send_newest(stream, draft)
        finally:
            draft.busy = False
            if draft.newest is not None:
                self._send_later(stream, draft)

    def _wait(self, stream: DraftStream, draft: Draft) -> float:
        now = asyncio.get_running_loop().time()
        return max(draft.next_at - now, self._floods.blocked_for(stream))

    def _send_later(self, stream: DraftStream, draft: Draft) -> None:
        draft.busy = True
        task = asyncio.create_task(self._keep_sending(stream, draft))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep_sending(self, stream: DraftStream, draft: Draft) -> None:
        """Send the newest text as soon as it may be sent, until there is none."""
        try:
            while draft.newest is not None and not self._pacer.closed:
                if self._floods.blocked_for(stream) > self._max_wait:
                    return
                try:
                    if (wait := self._wait(stream, draft)) > 0:
                        await self._pacer.sleep(wait)
                    else:
                        await self._send_newest(stream, draft)
                except Exception as error:  # nobody waits for its answer
                    log.debug("A draft was not shown: %r", error)
                    if not isinstance(error, AiogramError):  # the next try would fail, too
                        return
        finally:
            draft.newest = None
            draft.busy = False

    async def _send_newest(self, stream: DraftStream, draft: Draft) -> Any:
        """Send the newest text if the budget has a permit, and keep it otherwise."""
        clock = asyncio.get_running_loop().time
        wait = await self._pacer.try_once(stream)
        if wait > 0:
            draft.next_at = clock() + wait
            return True
        request = draft.newest
        if request is None:  # a message has made it obsolete
            return True
        draft.next_at = clock() + self._gap
        draft.on_its_way = answered = asyncio.get_running_loop().create_future()
        try:
            return await self._send(request)
        except TelegramAPIError as error:
            if (seconds := flood_wait(error)) is None:
                raise
            await self._floods.on_flood(stream, request, seconds)
            request = None  # it is sent again, unless it was dropped or replaced
            return True
        finally:
            answered.set_result(None)
            draft.on_its_way = None
            if draft.newest is request:
                draft.newest = None

"""Migration: when a group becomes a supergroup, what is kept under its id goes over to the new id.

Telegram sends two service messages: one to the group with the new id, one to the supergroup with
the old one. The instance that gets the first of them moves everything, once.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime
from math import inf
from typing import Any, Final

from aiogram import BaseMiddleware
from aiogram.types import Message, TelegramObject

from bot_ratelimit.config.live import HISTORY, Live, live_key
from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.errors import RateLimitError, StorageError
from bot_ratelimit.incoming.admission import Handler
from bot_ratelimit.incoming.event_filter import EventFilter
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.rule import Subject, rule_at, rules_of
from bot_ratelimit.storage.documents import with_id

log = logging.getLogger("bot_ratelimit")

_ONCE: Final = Limit(1, 86_400)
_PAGE: Final = 1_000


class Migration(BaseMiddleware):
    """Moves what is kept about a group to its new id.

    These are counts and bans of every rule and penalty, what the outgoing limits keep, bans by
    hand, exemptions, and live changes.
    """

    def __init__(self, limiter: Limiter, event_filter: EventFilter, live: Live | None) -> None:
        self._limiter = limiter
        self._event_filter = event_filter
        self._live = live

    def __call__(self, handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
        """Pass the message on, after the move if it is about one."""
        if isinstance(event, Message):
            here, new, old = event.chat.id, event.migrate_to_chat_id, event.migrate_from_chat_id
            if new is not None:
                return self._after_move(here, new, handler, event, data)
            if old is not None:
                return self._after_move(old, here, handler, event, data)
        return handler(event, data)  # nearly always, without a coroutine in between

    async def _after_move(
        self, old: int, new: int, handler: Handler, event: TelegramObject, data: dict[str, Any]
    ) -> Any:
        await self.move(old, new)
        return await handler(event, data)

    async def move(self, old: int, new: int) -> None:
        """Move everything; errors are logged, because the update has to be handled."""
        # What operators exempt goes over in the live document alone, so that they can undo it.
        given = old in self._event_filter.given_ids & self._event_filter.exempt_ids
        if given:
            self._event_filter.exempt_for_good([new])
        try:
            # Not the bare id, which would be replaced as well.
            once = rule_at("migrated:", _ONCE, lambda subject: f"from{subject.chat}", 1)
            # A ban of the group does not keep it from being moved.
            claimed = await self._limiter.decider.hit(rules_of(once), Subject(chat=old))
            if claimed.source == "policy":
                raise StorageError("no answer from the storage")
            if not claimed.allowed:  # another instance moves it
                return
            prefix = f"{self._limiter.key_prefix}:ratelimit:"
            documents = self._limiter.storage.documents()
            count = await documents.replace_id(prefix, old, new)
            await self._move_bans(old, new)
            if self._live is not None:
                await self._change_live(old, new, given=given)
        except RateLimitError as error:
            log.warning(
                "Group %d became %d, and not everything went over: %s. Its counts begin again; "
                "repeat its bans, and exemptions by operators, with the new id",
                old,
                new,
                error,
            )
        else:
            log.info("Group %d became %d: %d counts went over", old, new, count)
        if given and self._live is None:
            log.warning(
                "Group %d, which is exempt, became %d: change its id in exempt; until then only "
                "this process exempts it, and only until it ends",
                old,
                new,
            )

    async def _move_bans(self, old: int, new: int) -> None:
        found, offset = [], 0
        while page := await self._limiter.bans(offset, _PAGE):
            found += [ban for ban in page if old in (ban.subject.user, ban.subject.chat)]
            offset += len(page)
        prefix, timeout = self._limiter.key_prefix, self._limiter.timeout
        listed = self._limiter.storage.bans(prefix)
        for ban in found:
            left = None
            if ban.until is not None:
                left = max(1.0, (ban.until - datetime.now(UTC)).total_seconds())
            # A ban of the group as a sender is one of its anonymous admins.
            user, chat = (new if each == old else each for each in ban.subject[:2])
            moved = ban.subject._replace(user=user, chat=chat)
            if ban.key:  # what refuses was renamed with the counts, so only the list has to follow
                key = with_id(ban.key, f"{prefix}:ratelimit:", old, new) or ban.key
                await listed.put(ban._replace(subject=moved, key=key), left or inf, timeout=timeout)
                await listed.drop(ban.subject, by_hand=False, timeout=timeout)
            else:
                await self._limiter.ban(moved, left, ban.reason, ban.by)
                await self._limiter.unban(ban.subject)

    async def _change_live(self, old: int, new: int, *, given: bool) -> None:
        """Write the exemptions with the new id, so that every instance reads them."""
        documents, prefix = self._limiter.storage.documents(), self._limiter.key_prefix
        while True:
            before = await documents.read(live_key(prefix, "live"))
            overrides = Overrides() if before is None else Overrides.from_json(before)
            exempt, limited = overrides.exempt, overrides.limited
            if old in limited:
                limited = limited - {old} | {new}
            elif given or old in exempt:
                exempt = exempt - {old} | {new}
            if (exempt, limited) == (overrides.exempt, overrides.limited):
                return
            now = replace(
                overrides,
                version=overrides.version + 1,
                at=await documents.now(),
                by="bot_ratelimit",
                what=f"group {old} became {new}",
                exempt=exempt,
                limited=limited,
            ).to_json()
            if await documents.swap(live_key(prefix, "live"), before, now):
                await documents.push(live_key(prefix, "history"), now, HISTORY)
                return

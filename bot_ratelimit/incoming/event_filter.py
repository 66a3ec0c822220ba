"""EventFilter: whether an event is counted, for which Subject, and which events share a charge."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from inspect import isawaitable
from typing import Any, NamedTuple, TypeAlias

from aiogram.types import TelegramObject, Update

from bot_ratelimit.config.ids import check_id
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.incoming.events import (
    UNSENT,
    album_of,
    check_event_names,
    delivery_of,
    is_automatic,
    is_from_bot,
    is_one_of,
    is_paid,
    subject_of,
)
from bot_ratelimit.incoming.functions import check_takes
from bot_ratelimit.rules.checks import check_flag
from bot_ratelimit.rules.rule import Subject
from bot_ratelimit.storage.loops import Seldom

log = logging.getLogger("bot_ratelimit")

IsExempt: TypeAlias = Callable[[TelegramObject, dict[str, Any]], "Awaitable[bool] | bool"]


class Counted(NamedTuple):
    """An event that is charged."""

    subject: Subject
    once: str | None
    """The token of events with one charge: an album, or the same update delivered again."""


class EventFilter:
    """Decides which events a middleware counts, and for which Subject.

    The arguments are those of `RateLimitMiddleware`; `limits_bots` says whether other bots have a
    limit of their own. It is not one of aiogram's filters.
    """

    def __init__(
        self,
        *,
        exempt: Iterable[int] | IsExempt,
        never_refuse: Iterable[str],
        per_bot: bool,
        once_per_update: bool,
        limits_bots: bool,
    ) -> None:
        self.is_exempt = exempt if callable(exempt) else None
        if self.is_exempt is not None:
            check_takes("exempt", self.is_exempt, "event", "data")
        self._failed = Seldom()
        self.exempt_ids = frozenset() if callable(exempt) else _checked_ids(exempt)
        self.given_ids = self.exempt_ids
        self._live_ids: frozenset[int] = frozenset()
        self._limited_ids: frozenset[int] = frozenset()
        self._never_refuse = check_event_names(never_refuse)
        self._once_per_update = check_flag("once_per_update", once_per_update)
        self.per_bot = check_flag("per_bot", per_bot)
        self._limits_bots = limits_bots

    @property
    def uncounted(self) -> frozenset[str]:
        """The types of updates that are never counted, and content types."""
        return self._never_refuse | UNSENT

    def set_live_exemptions(self, exempt: frozenset[int], limited: frozenset[int]) -> None:
        """Set the ids that operators exempt, and those that they limit although they are exempt.

        Both replace the ids of the previous call.
        """
        self._live_ids, self._limited_ids = exempt, limited
        self._add_up()

    def exempt_for_good(self, ids: Iterable[int]) -> None:
        """Add to the ids that are exempt, as if they had been given at the start."""
        self.given_ids |= _checked_ids(ids)
        self._add_up()

    def _add_up(self) -> None:
        self.exempt_ids = (self.given_ids | self._live_ids) - self._limited_ids

    def subject_of_counts(self, subject: Subject | int) -> Subject:
        """Return the Subject under which the events of a user are counted.

        Raises:
            ConfigError: The subject is neither an id nor a Subject, or does not name the bot with
                `per_bot`.
        """
        if not isinstance(subject, Subject):
            if not isinstance(subject, int) or isinstance(subject, bool):
                raise ConfigError(
                    f"reset: {subject!r} is not a user: pass an id, reset(42), or Subject(user=42)"
                )
            subject = Subject(user=subject, chat=subject)
        if not self.per_bot:
            return subject._replace(bot=None)
        if subject.bot is None:
            raise ConfigError(
                "reset: each bot has its own counts (per_bot=True), so name the bot, "
                "Subject(user=42, bot=bot.id)"
            )
        return subject

    async def counted(
        self, event: TelegramObject, update: Update | None, data: dict[str, Any]
    ) -> Counted | None:
        """Return the Subject and the charge of an event; None if it is not counted."""
        counted = self.counted_by_id(event, update, data)
        if counted is None or self.is_exempt is None:
            return counted
        if self._limits_bots and is_from_bot(event, data):
            return counted  # not because its group is exempt
        try:
            exempt = self.is_exempt(event, data)
            return None if (await exempt if isawaitable(exempt) else exempt) else counted
        except Exception as error:
            if count := self._failed.due():
                log.error(
                    "%d updates were counted as not exempt, because a function of the bot failed: "
                    "%r",
                    count,
                    error,
                    exc_info=error,
                )
            return counted

    def counted_by_id(
        self, event: TelegramObject, update: Update | None, data: dict[str, Any]
    ) -> Counted | None:
        """The same without asking the function `exempt`, so without waiting."""
        bot = data.get("bot")
        if is_one_of(self._never_refuse, event, update) or is_paid(event):
            return None
        subject = subject_of(event, data)
        if subject is None or is_automatic(event, update, None if bot is None else bot.id):
            return None
        if self.exempt_ids and self._exempts(subject, event, data):
            return None
        once = album_of(event)
        if once is None and self._once_per_update and update is not None and bot is not None:
            once = delivery_of(update, bot.id)
        if self.per_bot and bot is not None:
            subject = subject._replace(bot=bot.id)
        return Counted(subject, once)

    def _exempts(self, subject: Subject, event: TelegramObject, data: dict[str, Any]) -> bool:
        if subject.user in self.exempt_ids:
            return True
        if self._limits_bots and is_from_bot(event, data):
            return False  # not because its group is exempt
        return subject.chat in self.exempt_ids


def _checked_ids(exempt: Iterable[int]) -> frozenset[int]:
    if not isinstance(exempt, Iterable) or isinstance(exempt, (str, bytes)):
        raise ConfigError(f"exempt={exempt!r}: expected ids, such as [42, -100123], or a function")
    return frozenset(check_id(each, "exempt") for each in exempt)

"""How a refused user hears of it, without the bot flooding back."""

from __future__ import annotations

import math
from typing import Any, Final

from aiogram.enums import ChatType
from aiogram.types import CallbackQuery, Message, TelegramObject

from bot_ratelimit.decision import Decision
from bot_ratelimit.events import subject_of
from bot_ratelimit.limit import Limit
from bot_ratelimit.limiter import Limiter
from bot_ratelimit.rule import Rule

NOTICE: Final = "notice"
"""The name of the rule that counts notices: `<prefix>:ratelimit:notice:<user>`."""

_TEXTS: Final = {
    "en": "Too many requests. Please try again in {seconds} s.",
    "ru": "Слишком много запросов. Попробуйте через {seconds} с.",
}


class Notices:
    """Answers every refused button press, and tells a private chat once for each wait.

    A callback query shows a spinner until it is answered, and answers cost nothing. A message
    does: so the first refused one of a window gets a notice, decided on the storage for all
    instances together, and the others get silence. Groups never get one.
    """

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter

    async def __call__(
        self, event: TelegramObject, decision: Decision, data: dict[str, Any]
    ) -> None:
        """Tell the user behind a refused event."""
        if isinstance(event, CallbackQuery):
            wait = max(1, math.ceil(decision.retry_after))
            # The client keeps the answer for that long and does not ask again.
            await event.answer(_text(event, decision), cache_time=wait)
        elif (
            isinstance(event, Message)
            and event.chat.type == ChatType.PRIVATE
            and await self._is_first(event, decision, data)
        ):
            await event.answer(_text(event, decision))

    async def _is_first(
        self, event: TelegramObject, decision: Decision, data: dict[str, Any]
    ) -> bool:
        subject = subject_of(event, data)
        if subject is None or decision.retry_after <= 0:
            return False
        window = Limit(1, max(0.001, decision.retry_after))
        told = await self._limiter.hit(Rule(window, name=NOTICE), subject)
        # Without the storage nobody knows whether the user was told: silence is safer.
        return told.allowed and told.source != "policy"


def _text(event: CallbackQuery | Message, decision: Decision) -> str:
    language = (event.from_user and event.from_user.language_code) or ""
    text = _TEXTS.get(language.partition("-")[0], _TEXTS["en"])
    return text.format(seconds=max(1, math.ceil(decision.retry_after)))

"""How a refused user hears of it, without the bot flooding back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from aiogram.enums import ChatType
from aiogram.types import CallbackQuery, InlineQuery, Message, TelegramObject
from aiogram.utils.callback_answer import CallbackAnswer

from bot_ratelimit.decision import Decision
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limit import MAX_PERIOD_MS
from bot_ratelimit.limiter import Limiter
from bot_ratelimit.limits_file import check_notice
from bot_ratelimit.rule import Scope, Subject, notice_rule

TEXTS: Final[Mapping[str, str]] = {
    "en": "Too many requests. Please try again in {seconds} s.",
    "ru": "Слишком много запросов. Попробуйте снова через {seconds} с.",
}
"""The texts by language; the first one is for every other language."""


# Telegram takes about one message a second in a chat, and 200 characters over a button.
_SHORTEST: Final = 1.0
# A bucket can take longer than that to hold a high cost again; such a wait is announced as this.
_LONGEST: Final = MAX_PERIOD_MS / 1_000
_CALLBACK_TEXT: Final = 200


class Notices:
    """Tells refused users, in a way that Telegram allows however many there are.

    - A button press is always answered, or the button would keep its spinner: with the text, and
      a `cache_time` of the wait, so that the client itself answers the next presses.
    - An inline query gets an empty result for this user, cached for the wait.
    - A message gets one notice for each wait, decided on the storage for all instances together;
      only in private chats, unless asked for, since a group allows a bot 20 messages a minute.

    Args:
        texts: A text, or texts by language code (`"en"`, `"pt-br"`), of which the first is for
            every other language. `{seconds}` stands for the wait.
        in_groups: Also tell groups: each member once for each wait, or the whole chat if it is
            the chat that is limited.

    Raises:
        ConfigError: A text is not a str, or has a placeholder other than `{seconds}`.
    """

    def __init__(self, texts: str | Mapping[str, str] = TEXTS, *, in_groups: bool = False) -> None:
        by_language = {"": texts} if isinstance(texts, str) else dict(texts)
        if not by_language:
            raise ConfigError("the texts of a notice: expected at least one")
        for language, text in by_language.items():
            if not isinstance(language, str):
                raise ConfigError(f"the language of a notice {language!r}: expected a code as 'en'")
            check_notice(text)
        self._texts = {language.lower(): text for language, text in by_language.items()}
        self._in_groups = in_groups

    async def tell(
        self,
        event: TelegramObject,
        decision: Decision,
        subject: Subject,
        limiter: Limiter,
        data: dict[str, Any],
    ) -> None:
        """Tell the user behind a refused event, if it is time to.

        Raises:
            TelegramAPIError: Telegram does not take the notice; it is not tried again.
        """
        wait = max(1, math.ceil(min(decision.retry_after, _LONGEST)))
        if isinstance(event, CallbackQuery):
            if _leave_to_us(data.get("callback_answer")):
                text = self._text(event, wait)[:_CALLBACK_TEXT]
                await event.answer(text, cache_time=wait)
        elif isinstance(event, InlineQuery):
            await event.answer([], cache_time=wait, is_personal=True)
        elif isinstance(event, Message) and await self._may_tell(event, decision, subject, limiter):
            # Plain, whatever the bot's default is: a dot alone would be an error in MarkdownV2.
            await event.answer(self._text(event, wait), parse_mode=None)

    async def _may_tell(
        self, event: Message, decision: Decision, subject: Subject, limiter: Limiter
    ) -> bool:
        private = event.chat.type == ChatType.PRIVATE
        # Business chats and those of guest messages are other people's: the bot stays silent there.
        elsewhere = subject.business or getattr(event, "guest_query_id", None)
        if elsewhere or not (private or self._in_groups):
            return False
        own = decision.rule.scope in (Scope.USER, Scope.MEMBER)
        scope = Scope.USER if private else Scope.MEMBER if own else Scope.CHAT
        seconds = min(max(_SHORTEST, decision.retry_after), _LONGEST)
        told = await limiter.hit(notice_rule(seconds, scope), subject)
        # Without the storage nobody knows whether the user was told already: rather be silent.
        return told.allowed and told.source in ("redis", "memory")

    def _text(self, event: CallbackQuery | InlineQuery | Message, seconds: int) -> str:
        language = ((event.from_user and event.from_user.language_code) or "").lower()
        texts = self._texts
        text = texts.get(language) or texts.get(language.partition("-")[0])
        return (text or next(iter(texts.values()))).format(seconds=seconds)


def _leave_to_us(answer: object) -> bool:
    """Whether aiogram's CallbackAnswerMiddleware, if it is there, lets us answer."""
    if not isinstance(answer, CallbackAnswer):
        return True
    if answer.answered and not answer.disabled:
        return False
    if not answer.disabled:
        answer.disable()
    return True

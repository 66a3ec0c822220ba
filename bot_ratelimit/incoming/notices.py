"""Notices: tell users that they were refused, without the bot flooding them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Any, Final, NamedTuple

from aiogram.enums import ChatType
from aiogram.types import CallbackQuery, InlineQuery, Message, ReplyParameters, TelegramObject
from aiogram.utils.callback_answer import CallbackAnswer
from aiogram.utils.i18n.lazy_proxy import LazyProxy  # type: ignore[attr-defined]  # not in its __all__

from bot_ratelimit.config.limits_file import check_language, check_notice
from bot_ratelimit.errors import ConfigError, NotSentError, RateLimitError
from bot_ratelimit.incoming.debounce import Debounce
from bot_ratelimit.incoming.dispatch_state import DEADLINE, dispatch_state
from bot_ratelimit.limiter.counts import counts_to_reset
from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.limiter.observer import NoticeKind, NoticeResult
from bot_ratelimit.limiter.slot import Slot
from bot_ratelimit.rules.checks import check_flag
from bot_ratelimit.rules.concurrency import Concurrency
from bot_ratelimit.rules.duration import RUSSIAN_UNITS, UNITS, wait_text
from bot_ratelimit.rules.limit import MAX_PERIOD_MS, Algorithm, Limit
from bot_ratelimit.rules.rule import Rule, Rules, Scope, Subject, notice_rule, rule_at, rules_of
from bot_ratelimit.storage.base import Ask, Op

TEXTS: Final[Mapping[str, str]] = {
    "en": "Too many requests. Please try again in {wait}.",
    "ru": "Слишком много запросов. Попробуйте снова через {wait}.",
}
"""The texts by language code; the first one is used for all other languages."""

BUSY: Final[Mapping[str, str]] = {
    "en": "Your last request is still running.",
    "ru": "Ваш предыдущий запрос ещё выполняется.",
}
"""The texts if the slots of a handler are taken (the flag `concurrent`)."""

# Telegram accepts about one message a second in a chat, and 200 characters in a callback answer.
_SHORTEST: Final = 1.0
# A user who comes back in the evening must not find a bot that seems dead.
_REMIND: Final = 3_600.0
# A bucket can take longer than this to hold a high cost again; the wait is cut to this.
_LONGEST: Final = MAX_PERIOD_MS / 1_000
_CALLBACK_TEXT: Final = 200
# A ban that is lifted, or a count that is forgiven, frees the buttons after this time.
_CACHED: Final = 30
# The rest of a lease does not say when the running request will be done.
_BUSY_AGAIN: Final = 10.0


REFUSAL_KEY: Final = "_bot_ratelimit_refusal"


class Refusal(NamedTuple):
    """A refused event; it is put into `data` for a custom `on_limited` that calls `Notices`."""

    event: TelegramObject
    decision: Decision
    subject: Subject
    limiter: Limiter
    data: dict[str, Any]


class Notices:
    """Notifies refused users in a way that Telegram accepts, however many users there are.

    ::

        RateLimitMiddleware("5/10s", redis, on_limited=Notices("Wait {wait}.", in_groups=True))

    - A button press is always answered, because otherwise the button keeps its spinner. The answer
      has the text, and the wait as its `cache_time`, at most 30 s, so that the client itself
      answers the next presses.
    - An inline query gets an empty result for this user, cached for the same time.
    - A message gets one notice for each wait, over all instances; in a long wait one an hour. By
      default this is done in private chats only, because a group accepts 20 messages of a bot per
      minute.
    - Users who are banned by hand are told nothing.

    A custom `on_limited` can call it too.

    Args:
        texts: A text, or texts by language code (`"en"`, `"pt-br"`). The first one is used for all
            other languages. `{wait}` is replaced by the wait with its unit (`7 s`, `15 min`,
            `3 h 20 min`; Russian units in a Russian text), `{seconds}` by its seconds.
        busy: The same for users whose last request is still running, without the wait.
        in_groups: Whether notices are also sent in groups, as a reply to the refused message: to
            each member once for each wait, or once to the whole chat if the chat is limited.
            However many members send too much, a group gets at most three notices a minute. False
            by default.

    Raises:
        ConfigError: A text is not a str, or has a placeholder other than `{wait}` and
            `{seconds}`; or `in_groups` is not a bool.
    """

    def __init__(
        self,
        texts: str | Mapping[str, str] = TEXTS,
        *,
        busy: str | Mapping[str, str] = BUSY,
        in_groups: bool = False,
    ) -> None:
        self._texts = _by_language("texts", texts)
        self._busy = _by_language("busy", busy)
        self._in_groups = check_flag("in_groups", in_groups)

    async def __call__(
        self, event: TelegramObject, decision: Decision, data: dict[str, Any]
    ) -> None:
        """Notify the user, from a custom `on_limited` and with its arguments.

        ::

            notices = Notices("Slow down: {wait}.")

            async def on_limited(event, decision, data):
                if not decision.banned:
                    await notices(event, decision, data)

        Raises:
            ConfigError: These are not the arguments of `on_limited`.
            TelegramAPIError: Telegram rejected the notice; it is not sent again.
        """
        refusal = data.get(REFUSAL_KEY)
        if not isinstance(refusal, Refusal):
            raise ConfigError("Notices: call it in on_limited, with the event, decision and data")
        await self.tell(refusal._replace(event=event, decision=decision, data=data))

    async def tell(self, refusal: Refusal) -> None:
        """Notify the user of a refused event, if a notice is due.

        Raises:
            TelegramAPIError: Telegram rejected the notice; it is not sent again.
        """
        kind: NoticeKind = "message"
        if isinstance(refusal.event, (CallbackQuery, InlineQuery)):
            kind = "callback" if isinstance(refusal.event, CallbackQuery) else "inline"
        result: NoticeResult = "failed"
        try:
            result = "sent" if await self._send(refusal) else "silent"
        finally:
            refusal.limiter.observer.noticed(kind, result)

    async def _send(self, refusal: Refusal) -> bool:
        """Return whether a notice was sent."""
        event, decision, subject, limiter, data = refusal
        wait = max(1, math.ceil(min(decision.retry_after, _LONGEST)))
        cached = min(wait, _CACHED)
        # Where the policy refuses, or `InFlight`, no request of the user may be running.
        busy = isinstance(decision, Slot) and decision.source != "policy"
        if isinstance(decision.rule, Debounce) and not isinstance(event, CallbackQuery):
            return False  # the first of the equal messages is answered
        if isinstance(event, CallbackQuery):
            if not _may_answer(data.get("callback_answer")):
                return False
            text: str | None = None
            if not (isinstance(decision.rule, Debounce) or limiter.is_banned(subject)):
                text = self._text(event, wait, busy)[:_CALLBACK_TEXT]
            await event.answer(text, cache_time=0 if busy else cached)
        elif isinstance(event, InlineQuery):
            await event.answer([], cache_time=1 if busy else cached, is_personal=True)
        elif isinstance(event, Message):
            text = self._text(event, wait, busy)
            return await self._tell_once(event, text, refusal)
        else:
            return False
        return True

    async def _tell_once(self, event: Message, text: str, refusal: Refusal) -> bool:
        """Send a notice in answer to a message, unless the user was already notified."""
        _, decision, subject, limiter, data = refusal
        rule = self._once(event, decision, subject)
        # A refusal by on_error="deny" lasts as long as the outage, so there is no wait to name.
        if rule is None or decision.source == "policy" or limiter.is_banned(subject):
            return False
        rules, reply = rules_of(rule), None
        if event.chat.type != ChatType.PRIVATE:
            rules = Rules((*rules, _IN_GROUP))
            # So that the group sees who is meant, also if the message was deleted meanwhile.
            reply = ReplyParameters(message_id=event.message_id, allow_sending_without_reply=True)
        told = await limiter.decider.hit(
            rules, subject, deadline=dispatch_state(data).get(DEADLINE)
        )
        # Without the storage it is unknown whether the user was already notified: stay silent.
        if not told.allowed or told.source in ("policy", "none"):
            return False
        try:
            # Plain text, whatever the bot's default is: a dot alone would be an error in
            # MarkdownV2.
            await event.answer(text, parse_mode=None, reply_parameters=reply)
        except NotSentError:
            # The notice would have had to wait, so a later refused message gets one.
            own = told.source == limiter.storage.source
            counted = limiter.storage if own else limiter.decider.standby
            counts = counts_to_reset(limiter.key_prefix, rules_of(rule), subject)
            with suppress(RateLimitError):
                await counted.ask(Ask(counts, Op.RESET), timeout=limiter.timeout)
            raise
        return True

    def _once(self, event: Message, decision: Decision, subject: Subject) -> Rule | None:
        """The rule that allows one notice for each wait; None if no notice is due here."""
        private = event.chat.type == ChatType.PRIVATE
        # Business chats and chats of guest messages belong to other users: the bot stays silent
        # there.
        elsewhere = subject.business or getattr(event, "guest_query_id", None)
        if elsewhere or not (private or self._in_groups):
            return None
        own = decision.rule.scope in (Scope.USER, Scope.MEMBER)
        scope = Scope.USER if private else Scope.MEMBER if own else Scope.CHAT
        if isinstance(decision.rule, Concurrency):
            return notice_rule(_BUSY_AGAIN, scope, "slot:")
        return notice_rule(min(max(_SHORTEST, decision.retry_after), _REMIND), scope)

    def _text(self, event: CallbackQuery | InlineQuery | Message, seconds: int, busy: bool) -> str:
        language = ((event.from_user and event.from_user.language_code) or "").lower()
        texts = self._busy if busy else self._texts
        found = texts.get(language) or texts.get(language.partition("-")[0])
        if found is None:
            language, found = next(iter(texts.items()))
        text = str(found)  # a lazy text is translated here
        return text.format(seconds=seconds, wait=wait_text(seconds, _units(language, text)))


def _units(language: str, text: str) -> Sequence[str]:
    """The units for a text; one without a language is taken for Russian if it is in Cyrillic."""
    primary = language.partition("-")[0]
    is_russian = primary == "ru" or (not primary and re.search("[А-Яа-я]", text))
    return RUSSIAN_UNITS if is_russian else UNITS


_IN_GROUP: Final = rule_at(
    "notice:group:", Limit(3, 60.0, Algorithm.SLIDING_WINDOW), attrgetter("chat"), 1
)
"""Notices in one group, `...:notice:group:<chat>`: Telegram accepts 20 messages a minute there, and
the bot's answers need them."""


def _by_language(name: str, texts: Any) -> dict[str, str]:
    if isinstance(texts, LazyProxy):  # translated, and so checked, when it is sent
        return {"": texts}
    if isinstance(texts, str):
        check_notice(texts)
        return {"": texts}
    if not isinstance(texts, Mapping) or not texts:
        raise ConfigError(
            f"Notices: {name}={texts!r}: expected a text, or texts by language, "
            "{'en': 'Try again in {wait}.'}"
        )
    for language, text in texts.items():
        check_language(language)
        check_notice(text)
    return {language.lower(): text for language, text in texts.items()}


def _may_answer(answer: object) -> bool:
    """Whether aiogram's CallbackAnswerMiddleware, if it is used, leaves the answer to us."""
    if not isinstance(answer, CallbackAnswer):
        return True
    if answer.answered and not answer.disabled:
        return False
    if not answer.disabled:
        answer.disable()
    return True

"""Telling: a refused user is told, and an error in that breaks nothing."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from inspect import isawaitable
from itertools import chain
from typing import Any

from aiogram import Dispatcher
from aiogram.exceptions import TelegramAPIError
from aiogram.types import TelegramObject
from aiogram.utils.i18n import I18n, I18nMiddleware

from bot_ratelimit.errors import NotSentError
from bot_ratelimit.incoming.arguments import OnLimitedLike, notices_of
from bot_ratelimit.incoming.dispatch_state import REFUSED, dispatch_state
from bot_ratelimit.incoming.events import is_from_bot
from bot_ratelimit.incoming.notices import REFUSAL_KEY, Notices, Refusal
from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.limiter.waiting_allowed import without_waiting
from bot_ratelimit.rules.rule import Subject
from bot_ratelimit.storage.loops import Seldom

log = logging.getLogger("bot_ratelimit")


class Telling:
    """Tells refused users, whatever happens.

    Bots are never told: two bots that answer each other's notices would never end.
    """

    def __init__(
        self, on_limited: OnLimitedLike, limiter: Limiter, name: str = "on_limited"
    ) -> None:
        self._on_limited = notices_of(on_limited, name)
        self._limiter = limiter
        self._failed = {True: Seldom(), False: Seldom()}

    async def tell(
        self, event: TelegramObject, decision: Decision, subject: Subject, data: dict[str, Any]
    ) -> None:
        """Tell the user of a refused event."""
        dispatch_state(data)[REFUSED] = True
        if self._on_limited is None or is_from_bot(event, data):
            return
        try:
            with await _language(event, data):
                await self._tell(event, decision, subject, data)
        except NotSentError as error:
            log.debug("A user was not told about the rate limit: %s", error)
        except TelegramAPIError as error:
            # For example a user who blocked the bot, a 429, or a broken network: the event stays
            # refused.
            self._log(error, is_bug=False)
        except Exception as error:
            # An error in the custom function: its author needs the traceback.
            self._log(error, is_bug=True)

    async def _tell(
        self, event: TelegramObject, decision: Decision, subject: Subject, data: dict[str, Any]
    ) -> None:
        refusal = Refusal(event, decision, subject, self._limiter, data)
        if isinstance(self._on_limited, Notices):
            # A late notice is useless, and it may delay a real answer.
            with without_waiting():
                await self._on_limited.tell(refusal)
        elif self._on_limited is not None:
            data[REFUSAL_KEY] = refusal
            result = self._on_limited(event, decision, data)
            if isawaitable(result):
                await result

    def _log(self, error: Exception, *, is_bug: bool) -> None:
        if count := self._failed[is_bug].due():
            log.warning(
                "Could not tell a user about the rate limit%s: %r",
                f" ({count} times)" if count > 1 else "",
                error,
                exc_info=error if is_bug else None,
            )


async def _language(event: TelegramObject, data: dict[str, Any]) -> AbstractContextManager[object]:
    """The translations of the bot's `I18nMiddleware`, which runs behind a guard."""
    dispatcher = data.get("dispatcher")
    if I18n.get_current(no_error=True) is not None or not isinstance(dispatcher, Dispatcher):
        return nullcontext()
    observers = dispatcher.message, dispatcher.update
    managers = [each for one in observers for each in (one.outer_middleware, one.middleware)]
    for each in chain.from_iterable(managers):
        if isinstance(each, I18nMiddleware):
            stack = ExitStack()
            stack.enter_context(each.i18n.context())
            stack.enter_context(each.i18n.use_locale(await _locale(each, event, data)))
            return stack
    return nullcontext()


async def _locale(middleware: I18nMiddleware, event: TelegramObject, data: dict[str, Any]) -> str:
    locale = None
    # It may need what other middlewares put into `data`, which have not run yet.
    with suppress(Exception):
        locale = await middleware.get_locale(event=event, data=data)
    return locale or middleware.i18n.default_locale

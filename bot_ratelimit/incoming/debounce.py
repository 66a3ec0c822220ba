"""Debounce: refuses the same press or message again."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar, Final

from aiogram.types import CallbackQuery, Message, TelegramObject

from bot_ratelimit.incoming.backlog import period_of
from bot_ratelimit.incoming.functions import EventRule
from bot_ratelimit.rules.duration import duration
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.rule import Rule, Subject

_FILES: Final = ("animation", "audio", "document", "sticker", "video", "video_note", "voice")


@dataclass(frozen=True, slots=True, init=False)
class Debounce(EventRule, Rule):
    """A rule that refuses the same event of the same user again within some time.

    ::

        RateLimitMiddleware(["5/10s", Debounce("2s")], redis)

        @flags.rate_limit(["3/minute", Debounce("5s")])
        async def buy(query: CallbackQuery) -> None: ...

    The same is a press on the same button of the same message, or a message with the same text or
    file in the same chat. Everything else, also every album, is not affected. A press is answered
    without a text, and nothing is sent about a message; a `Penalty` counts both as refused. The key
    is `<prefix>:ratelimit:same:1/2s:<user>:<chat>:<hash of the content>`.

    Args:
        window: Seconds, or a text such as `"2s"`.

    Raises:
        ConfigError: The window is not a period.
    """

    tells_left: ClassVar[bool] = False

    window: float
    """Seconds."""

    def __init__(self, window: float | str) -> None:
        _put(self, "window", period_of("Debounce", window))
        Rule.__init__(self, Limit(1, self.window))
        _put(self, "path", f"same:{self.limit}:")
        _put(self, "ids", lambda subject: None)  # without an event it does not apply

    def of_event(self, event: TelegramObject) -> Rule | None:
        """Return the rule that counts events equal to this one; None if it is not compared."""
        content = _content_of(event)
        if content is None:
            return None
        digest = blake2b(content.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        rule = copy(self)
        ids: Callable[[Subject], str | None] = lambda s: f"{s.user}:{s.chat}:{digest}"  # noqa: E731 - it needs a type
        _put(rule, "ids", ids)
        return rule

    def __str__(self) -> str:
        """The rule in logs and errors, for example `equal events within 2 s`."""
        return f"equal events within {duration(self.window)}"


_put: Final = object.__setattr__


def _content_of(event: TelegramObject) -> str | None:
    """What two equal events have in common; None if the event is not compared."""
    if isinstance(event, CallbackQuery):
        message = event.message.message_id if event.message else event.inline_message_id
        return f"press:{message}:{event.data or event.game_short_name}"
    if not isinstance(event, Message) or event.edit_date or event.media_group_id:
        return None
    if event.text is not None:
        return f"text:{event.text}"
    files = [event.photo[-1]] if event.photo else [getattr(event, name) for name in _FILES]
    for file in files:
        if file is not None:
            return f"file:{file.file_unique_id}:{event.caption or ''}"
    return None

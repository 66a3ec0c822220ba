"""What an aiogram event is to the limiter: who acts, and where."""

from __future__ import annotations

from typing import Any

from aiogram.dispatcher.middlewares.user_context import EVENT_CONTEXT_KEY, EventContext
from aiogram.types import TelegramObject

from bot_ratelimit.rule import Subject


def subject_of(event: TelegramObject, data: dict[str, Any]) -> Subject | None:
    """Whom the event counts for; None if there is nobody behind it (a channel post, a poll).

    The dispatcher has resolved this for every kind of update (`event_context`); without it, as
    when a middleware is called directly, the event's own fields are asked.
    """
    context = data.get(EVENT_CONTEXT_KEY)
    if not isinstance(context, EventContext):
        context = EventContext(
            user=getattr(event, "from_user", None), chat=getattr(event, "chat", None)
        )
    if context.user is None:
        return None
    return Subject(context.user.id, context.chat_id, context.thread_id)

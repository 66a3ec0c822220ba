"""How the limiter sees an aiogram event: its Subject, its album, and what is never refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, get_args

from aiogram.dispatcher.middlewares.user_context import EVENT_CONTEXT_KEY, EventContext
from aiogram.enums import ChatType, ContentType, UpdateType
from aiogram.types import (
    Message,
    MessageReactionUpdated,
    PollAnswer,
    TelegramObject,
    Update,
)

from bot_ratelimit.config.ids import NOBODY
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.rule import Subject

# Content that users write. Any other content is a service message, which Telegram sends to report
# that something happened.
_WRITTEN: Final = frozenset(
    {"text", "animation", "audio", "document", "live_photo", "paid_media", "photo", "sticker"}
    | {"story", "video", "video_note", "voice", "checklist", "contact", "dice", "game", "poll"}
    | {"venue", "location", "rich_message", "invoice", "giveaway", "giveaway_winners"}
)
SERVICE_MESSAGES: Final = frozenset(
    str(content.value)
    for content in ContentType
    if content not in (ContentType.ANY, ContentType.UNKNOWN)
).difference(_WRITTEN)
"""The content types of messages that report a payment or a change of state."""

NEVER_REFUSED: Final = SERVICE_MESSAGES | frozenset(
    {"pre_checkout_query", "shipping_query", "purchased_paid_media", "subscription"}
    | {"my_chat_member", "chat_member", "chat_join_request"}
    | {"business_connection", "deleted_business_messages", "managed_bot"}
    | {"chat_boost", "removed_chat_boost", "stopped_message_generation"}
    | {"unknown"}
)
"""The types of updates and content types of messages that are never refused and never charged.

They carry money (`pre_checkout_query` must be answered within 10 seconds) or state that Telegram
sends only once. `unknown` is content that the installed aiogram does not recognize, for example a
newer service message, which may carry money too.
"""
UNSENT: Final = frozenset({"channel_post", "edited_channel_post", "message_reaction_count", "poll"})
"""The types of updates that have no sender to count."""
_KNOWN: Final = NEVER_REFUSED | _WRITTEN | frozenset(str(update.value) for update in UpdateType)


def _kinds() -> dict[type, tuple[str, ...]]:
    """The types of update that carry each class of event, read from the fields of Update."""
    kinds: dict[type, tuple[str, ...]] = {}
    for name, field in Update.model_fields.items():
        for cls in get_args(field.annotation):
            if isinstance(cls, type) and issubclass(cls, TelegramObject):
                kinds[cls] = (*kinds.get(cls, ()), name)
    return kinds


_KINDS: Final = _kinds()


GENERAL: Final = 1
"""The id of the topic General, which Telegram does not name in updates."""


def check_event_names(names: Iterable[str]) -> frozenset[str]:
    """Return the names as a set, if each is a type of update or a content type of a message.

    Raises:
        ConfigError: One of them is neither.
    """
    if not isinstance(names, Iterable):
        raise ConfigError(f"never_refuse={names!r}: expected names, as in NEVER_REFUSED")
    found = frozenset([names] if isinstance(names, str) else names)
    for name in sorted(found - _KNOWN, key=str):
        raise ConfigError(
            f"never_refuse: {name!r} is neither a type of update (such as 'chat_member') nor the "
            "content type of a message (such as 'successful_payment')"
        )
    return found


def carried_by(update: Update) -> TelegramObject | None:
    """Return the event in an update; None if this aiogram does not know its type."""
    for kinds in _KINDS.values():
        for kind in kinds:
            event: TelegramObject | None = getattr(update, kind)
            if event is not None:
                return event
    return None


def is_one_of(names: frozenset[str], event: TelegramObject, update: Update | None) -> bool:
    """Whether the event's type, or the content of its message, is among the names."""
    has_content = isinstance(event, Message) and event.content_type in names
    return has_content or is_of_type(names, event, update)


def is_of_type(names: frozenset[str], event: TelegramObject, update: Update | None) -> bool:
    """Whether the type of the update that carries the event is among the names."""
    kinds = _KINDS.get(type(event), ())
    if names.isdisjoint(kinds):
        return False
    # Update.event_type would hash the whole update. Checking the field that holds the event is
    # cheaper.
    return names.issuperset(kinds) or any(
        getattr(update, kind, None) is event for kind in kinds if kind in names
    )


def context_of(event: TelegramObject, data: dict[str, Any]) -> EventContext:
    """Return aiogram's context of an event, which it has before any other middleware."""
    context = data.get(EVENT_CONTEXT_KEY)
    if isinstance(context, EventContext):
        return context
    return EventContext(  # called without a dispatcher
        user=getattr(event, "from_user", None), chat=getattr(event, "chat", None)
    )


def subject_of(event: TelegramObject, data: dict[str, Any]) -> Subject | None:
    """Return the Subject of an event; None if there is no sender to count.

    ========================================  ===========================================
    a person                                  the user
    a channel, or an anonymous admin          `sender_chat`, never the placeholder user
    a reaction or vote in a chat's name       that chat
    a business chat                           the user, apart from the bot's own chats
    a guest bot's message                     the user or chat that called the bot
    channel post, automatic forward, poll     nobody
    ========================================  ===========================================
    """
    context = context_of(event, data)
    sender = context.user.id if context.user is not None else None
    if isinstance(event, Message):
        if event.is_automatic_forward or event.chat.type == ChatType.CHANNEL:
            return None
        caller = _guest_caller(event)
        if caller is not None:
            sender = caller
        elif event.sender_chat is not None:
            sender = event.sender_chat.id
    elif isinstance(event, MessageReactionUpdated) and event.actor_chat is not None:
        sender = event.actor_chat.id
    elif isinstance(event, PollAnswer) and event.voter_chat is not None:
        sender = event.voter_chat.id
    if sender is None or sender in NOBODY:
        return None
    chat = context.chat.id if context.chat is not None else None
    topic = _topic_of(event, context)
    return Subject(sender, chat, topic, None, context.business_connection_id)


def is_from_bot(event: TelegramObject, data: dict[str, Any]) -> bool:
    """Whether another bot sent this message, by itself."""
    user = context_of(event, data).user
    return (
        user is not None
        and user.is_bot
        and isinstance(event, Message)
        and user.id not in NOBODY
        and event.sender_chat is None
        and _guest_caller(event) is None
    )


def is_automatic(event: TelegramObject, update: Update | None, bot: int | None) -> bool:
    """Whether no act of a user caused this message.

    These are the bot's own messages, messages that a business account's bot or Telegram sends in
    its name (greetings, scheduled messages), the steps of a live location, and edits without a
    date, by which Telegram itself changes a message.
    """
    if not isinstance(event, Message):
        return False
    sender = event.from_user
    if sender is not None and sender.is_bot and sender.id == bot:
        return True
    if event.sender_business_bot is not None or event.is_from_offline:
        return True
    is_edit = update is not None and (
        event is update.edited_message or event is update.edited_business_message
    )
    return is_edit and (event.edit_date is None or event.location is not None)


def is_paid(event: TelegramObject) -> bool:
    """Whether the sender paid Telegram Stars for this message."""
    return bool(isinstance(event, Message) and event.paid_star_count)


def _guest_caller(message: Message) -> int | None:
    """The id of who called the guest bot that sent this message."""
    for name in ("guest_bot_caller_user", "guest_bot_caller_chat"):  # since aiogram 3.29
        found = getattr(message, name, None)
        if found is not None:
            return _number(found, "id")
    return None


def _number(found: Any, name: str) -> int:
    """A field of something that an older aiogram does not know, and keeps as a dict."""
    return int(found[name] if isinstance(found, dict) else getattr(found, name))


def _topic_of(event: TelegramObject, context: EventContext) -> int | None:
    """The topic of an event; General's if the chat has topics and the event names none."""
    if context.thread_id is not None:
        return context.thread_id
    direct = getattr(event, "direct_messages_topic", None)  # since aiogram 3.22
    if direct is not None:
        return _number(direct, "topic_id")
    return GENERAL if context.chat is not None and context.chat.is_forum else None


def album_of(event: TelegramObject) -> str | None:
    """The token of an album; Telegram's own id is unique only within a chat."""
    if isinstance(event, Message) and event.media_group_id and event.edit_date is None:
        return f"album:{event.chat.id}:{event.media_group_id}"
    return None


def delivery_of(update: Update, bot: int) -> str:
    """The token of an update that Telegram may deliver again."""
    return f"update:{bot}:{update.update_id}"

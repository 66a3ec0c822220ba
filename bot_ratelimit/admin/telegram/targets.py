"""Targets: the subject of a command, from an id, or from the message that it replies to."""

from __future__ import annotations

import re
from typing import Any, Final

from aiogram.enums import ChatType
from aiogram.types import Message

from bot_ratelimit.admin.words import code
from bot_ratelimit.config.ids import check_id
from bot_ratelimit.rules.rule import Subject

_ID: Final = re.compile(r"-?[0-9]{1,17}", re.ASCII)

_NOT_AN_ID: Final = "{value} is not the id of a user or a chat. Reply to a message, or give an id."
_BOTH: Final = (
    "You reply to a message and also name somebody: do only one of the two. Write a length as one "
    "word, such as 1h."
)
_HIDDEN: Final = (
    "That user hides their name in forwarded messages. Reply to the original message, or give the "
    "id."
)
_MYSELF: Final = "That message is the bot's own. Reply to a message of the user, or give an id."


class UnclearError(Exception):
    """A command is not clear; `text`, for `Words`, and `fields` say why."""

    def __init__(self, text: str, **fields: object) -> None:
        super().__init__(text)
        self.text, self.fields = text, fields


def target_of(message: Message, arguments: str, bot: int) -> tuple[Subject, str]:
    """The target of a command, and its other arguments; in a group a user is a member of it.

    Raises:
        UnclearError: The command names nobody, or Telegram does not tell who is meant.
        ConfigError: That is no id, or many senders share it.
    """
    first, rest = [*arguments.split(maxsplit=1), "", ""][:2]
    replied = message.reply_to_message
    # In a topic, a message that is not a reply refers to the message that opened the topic.
    is_reply = message.external_reply is not None or (
        replied is not None and replied.forum_topic_created is None
    )
    if _ID.fullmatch(first):
        is_own = replied is not None and replied.from_user and replied.from_user.id == bot
        if is_reply and not is_own:
            raise UnclearError(_BOTH)
        id_ = check_id(int(first))
        return Subject(chat=id_) if id_ < 0 else _counted(message, id_), rest
    if is_reply:
        author = check_id(_author_of(message))
        if author == bot:
            raise UnclearError(_MYSELF)
        return _counted(message, author), arguments
    if first:
        raise UnclearError(_NOT_AN_ID, value=code(first))
    raise UnclearError("Which user? Reply to a message, or give an id.")


def _counted(message: Message, user: int) -> Subject:
    """A user where this message was written: in the private chat with the bot, or in a group."""
    if message.chat.type == ChatType.PRIVATE:
        return Subject(user, user)
    return Subject(
        user, message.chat.id, message.message_thread_id if message.is_topic_message else None
    )


def _author_of(message: Message) -> int:
    """The author of the replied-to message; in a private chat, of the message forwarded there."""
    replied: Any = message.reply_to_message
    origin: Any = None
    if message.external_reply is not None:
        origin = message.external_reply.origin
    elif message.chat.type == ChatType.PRIVATE:
        origin = replied.forward_origin
    # The sender that is counted: a channel, or an anonymous admin's group, not a placeholder. An
    # automatic forward is not counted, and its placeholder says so.
    names: tuple[str, ...] = ("sender_user", "sender_chat", "chat")
    if origin is None:
        names = ("from_user",) if replied.is_automatic_forward else ("sender_chat", "from_user")
    for name in names:
        if (found := getattr(origin or replied, name, None)) is not None:
            return int(found.id)
    raise UnclearError(_HIDDEN)

"""Targets: the subject of a command, from a mention, an id, or the message that it replies to."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from aiogram import Bot
from aiogram.enums import ChatType
from aiogram.exceptions import TelegramAPIError
from aiogram.types import (
    Message,
    MessageOriginChannel,
    MessageOriginChat,
    MessageOriginUser,
)

from bot_ratelimit.admin.words import code
from bot_ratelimit.config.ids import LARGEST_ID, NOBODY
from bot_ratelimit.rules.rule import Subject

_ID: Final = re.compile(r"-?[0-9]+", re.ASCII)
_USERNAME: Final = re.compile(r"@[A-Za-z0-9_]{1,64}", re.ASCII)


_NOT_AN_ID: Final = (
    "{value} is not the id of a user or a chat. Reply to a message, or give an id: {example}"
)
_NO_USERNAME: Final = (
    "Telegram does not tell bots which user {name} is. Reply to a message, choose the user from "
    "the list after @, or give the id."
)
_BOTH: Final = (
    "You reply to a message and also name somebody: do only one of the two. Write a length as one "
    "word, such as 1h."
)
_HIDDEN: Final = (
    "That user hides their name in forwarded messages. Reply to the original message, or give the "
    "id."
)
_NOBODY: Final = (
    "That id belongs to no single user, but to all channels, all anonymous admins or Telegram's "
    "service account. It is never limited."
)
_MYSELF: Final = "That message is the bot's own. Reply to a message of the user, or give an id."


class UnclearError(Exception):
    """A command is not clear; `text`, for `Words`, and `fields` say why."""

    def __init__(self, text: str, **fields: object) -> None:
        super().__init__(text)
        self.text, self.fields = text, fields


class Target(NamedTuple):
    """The target of a command, and the rest of its arguments."""

    subject: Subject
    """A user, a channel that writes in groups, or a chat."""
    rest: str


async def target_of(message: Message, arguments: str, bot: Bot) -> Target:
    """Return the target of the command.

    Args:
        message: The message with the command.
        arguments: The text after the command.
        bot: Looks up the public name of a channel or group.

    Raises:
        UnclearError: The command names nobody, or Telegram does not tell who is meant.
    """
    named = _mentioned(message, arguments) or await _named(arguments, bot)
    replied = message.reply_to_message
    # In a topic, a message that is not a reply refers to the message that opened the topic.
    is_reply = message.external_reply is not None or (
        replied is not None and replied.forum_topic_created is None
    )
    if named is None:
        if is_reply:
            return Target(_author_of(message, bot.id), arguments)
        if not arguments.strip():
            raise UnclearError("Which user? Reply to a message, or give an id: {example}")
        raise UnclearError(_NOT_AN_ID, value=code(arguments.split()[0]))
    is_own = replied is not None and replied.from_user and replied.from_user.id == bot.id
    if is_reply and not is_own:
        raise UnclearError(_BOTH)
    return Target(_somebody(named.subject, bot.id), named.rest)


def _mentioned(message: Message, arguments: str) -> Target | None:
    """The user of a mention for which Telegram gives the id."""
    text = message.text or message.caption or ""
    for entity in message.entities or message.caption_entities or ():
        if entity.type == "text_mention" and entity.user is not None:
            said = entity.extract_from(text)
            if arguments.startswith(said):
                return Target(Subject(user=entity.user.id), arguments[len(said) :].strip())
    return None


async def _named(arguments: str, bot: Bot) -> Target | None:
    """The user or chat whose id or public name comes first in the arguments."""
    first, rest = [*arguments.split(maxsplit=1), "", ""][:2]
    if _ID.fullmatch(first):
        if len(first) > 20 or not 0 < abs(int(first)) <= LARGEST_ID:
            raise UnclearError(_NOT_AN_ID, value=code(first))
        id_ = int(first)
        return Target(Subject(user=id_) if id_ > 0 else Subject(chat=id_), rest)
    if not _USERNAME.fullmatch(first):
        return None
    try:
        chat = await bot.get_chat(first)
    except TelegramAPIError:
        raise UnclearError(_NO_USERNAME, name=code(first)) from None
    alone = chat.type in (ChatType.GROUP, ChatType.SUPERGROUP)
    return Target(Subject(chat=chat.id) if alone else Subject(user=chat.id), rest)


def _author_of(message: Message, bot: int) -> Subject:
    """The author of the replied-to message; in a private chat, of the message forwarded there."""
    replied = message.reply_to_message
    if message.external_reply is not None:
        return _somebody(_behind(message.external_reply.origin), bot)
    assert replied is not None  # noqa: S101 - otherwise it would not be a reply
    if message.chat.type == ChatType.PRIVATE and replied.forward_origin is not None:
        return _somebody(_behind(replied.forward_origin), bot)
    # The sender that is counted: a channel, or an anonymous admin's group, not a placeholder.
    author = replied.sender_chat or replied.from_user
    if replied.is_automatic_forward or author is None:
        raise UnclearError(_NOBODY)
    return _somebody(Subject(user=author.id), bot)


def _behind(origin: Any) -> Subject:
    if isinstance(origin, MessageOriginUser):
        return Subject(user=origin.sender_user.id)
    if isinstance(origin, MessageOriginChat):
        return Subject(user=origin.sender_chat.id)
    if isinstance(origin, MessageOriginChannel):
        return Subject(user=origin.chat.id)
    raise UnclearError(_HIDDEN)


def _somebody(subject: Subject, bot: int) -> Subject:
    if subject.user == bot:
        raise UnclearError(_MYSELF)
    if subject.user in NOBODY:
        raise UnclearError(_NOBODY)
    return subject

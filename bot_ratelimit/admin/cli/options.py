"""Options that commands share, and the subjects that they name."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from bot_ratelimit.admin.cli.session import checked
from bot_ratelimit.admin.views import LARGEST_ID
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.rule import Subject

Json = Annotated[bool, typer.Option("--json", help="One line of JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
User = Annotated[int, typer.Argument(help="The user's id; a negative one is a chat's.")]
Chat = Annotated[int | None, typer.Option(help="A chat's id; by default the private chat.")]
OneChat = Annotated[int | None, typer.Option("--chat", help="In this chat only.")]
Topic = Annotated[int | None, typer.Option(help="A topic's id.")]
Bot = Annotated[int | None, typer.Option(help="The bot's id, if each bot counts for itself.")]

IDS: Final = {"ignore_unknown_options": True}
"""For commands with ids: those of chats are negative, and must not be parsed as options."""


def subject_of(user: int, chat: int | None, topic: int | None, bot: int | None) -> Subject:
    """Who sends an update: a user, by default in the private chat, or a whole chat."""
    checked(check_id, user)
    if user < 0:
        return Subject(None, user, topic, bot)
    return Subject(user, user if chat is None else chat, topic, bot)


def target_of(user: int, chat: int | None) -> Subject:
    """Who is banned: a user everywhere, unless a chat is named, or a whole chat."""
    checked(check_id, user)
    return Subject(chat=user) if user < 0 else Subject(user=user, chat=chat)


def check_id(id_: int) -> None:
    """Raise ConfigError unless this can be an id: otherwise a typo would ban nobody unnoticed."""
    if not 0 < abs(id_) <= LARGEST_ID:
        raise ConfigError(f"{id_} is not the id of a user or a chat, such as 42 or -100123")

"""Context: an operator at work, and what was said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiogram import Bot
from aiogram.enums import ChatType
from aiogram.types import Message

from bot_ratelimit.admin.confirmations import Confirmations
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.telegram.answers import Writer
from bot_ratelimit.admin.telegram.buttons import Answer, Buttons
from bot_ratelimit.admin.telegram.targets import UnclearError, target_of
from bot_ratelimit.admin.telegram.texts import Words
from bot_ratelimit.rule import Subject


@dataclass(frozen=True, slots=True)
class Context:
    """An operator at work."""

    control: Control
    """Acts in the operator's name."""
    words: Words
    """In the operator's language."""
    operator: int
    admins: frozenset[int]
    """All operators."""
    bot: Bot
    per_bot: bool
    """Whether each bot counts for itself."""
    live: bool
    """Whether limits can be changed."""
    prefix: str
    """What the names of commands begin with."""
    confirmations: Confirmations

    @property
    def buttons(self) -> Buttons:
        """In the operator's language, too."""
        return Buttons(self.words, self.prefix)

    @property
    def write(self) -> Writer:
        """Words values."""
        return Writer(self.words, self.buttons)

    def subject(self, user: int | None, chat: int | None, topic: int | None = None) -> Subject:
        """Who is looked at, as this bot counts."""
        return Subject(user, chat, topic, self.bot.id if self.per_bot else None)

    async def ask(self, do: str, text: str, **action: Any) -> Answer:
        """Ask before something is done; see `actions.ACTIONS`."""
        token = await self.confirmations.ask(self.operator, {"do": do, **action})
        return Answer(text, self.buttons.confirmation(do, self.operator, token))

    def needs_live(self) -> None:
        """Raise UnclearError if the bot does not follow live changes."""
        if not self.live:
            raise UnclearError("needs_live")

    def needs_statistics(self) -> None:
        """Raise UnclearError if the bot does not count by hour."""
        if not self.control.limiter.keeps_statistics:
            raise UnclearError("needs_statistics")


@dataclass(frozen=True, slots=True)
class CommandCall:
    """A command as it was given."""

    name: str
    """With the prefix."""
    arguments: str
    message: Message

    async def whom(self, context: Context, rest: str = "") -> tuple[Subject, str]:
        """Whom it is about, and the other arguments; in a group, as a member of that group.

        Raises:
            UnclearError: That is not said, or cannot be known.
        """
        try:
            found, other = await target_of(self.message, self.arguments, context.bot)
        except UnclearError as error:
            error.fields |= {"command": self.name, "rest": rest}
            raise
        if found.user is None:
            return context.subject(None, found.chat), other
        if self.message.chat.type == ChatType.PRIVATE:
            return context.subject(found.user, found.user), other
        topic = self.message.message_thread_id if self.message.is_topic_message else None
        return context.subject(found.user, self.message.chat.id, topic), other

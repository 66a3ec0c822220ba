"""Context and CommandCall: what the handler of an operator's command works with."""

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
from bot_ratelimit.rules.rule import Subject


@dataclass(frozen=True, slots=True)
class Context:
    """The operator, and what is needed to answer them."""

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
        """Makes buttons in the operator's language."""
        return Buttons(self.words, self.prefix)

    @property
    def write(self) -> Writer:
        """Formats answers in the operator's language."""
        return Writer(self.words, self.buttons)

    def subject(self, user: int | None, chat: int | None, topic: int | None = None) -> Subject:
        """The subject under which this bot counts a user or chat."""
        return Subject(user, chat, topic, self.bot.id if self.per_bot else None)

    async def ask(self, do: str, text: str, **action: Any) -> Answer:
        """Ask for confirmation of an action; see `actions.ACTIONS`."""
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
    """A command that an operator gave."""

    name: str
    """With the prefix."""
    arguments: str
    message: Message

    async def target(self, context: Context, rest: str = "") -> tuple[Subject, str]:
        """Return the subject of the command (in a group, a member of it) and the other arguments.

        Raises:
            UnclearError: The command names nobody, or Telegram does not tell who is meant.
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

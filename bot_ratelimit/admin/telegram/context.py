"""Context: what the handler of an operator's command or button works with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiogram import Bot
from aiogram.enums import ChatType
from aiogram.types import Message

from bot_ratelimit.admin.confirmations import Confirmations
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.fields import checked
from bot_ratelimit.admin.operations import Operation
from bot_ratelimit.admin.telegram.buttons import Buttons
from bot_ratelimit.admin.telegram.messages import Answer, asked
from bot_ratelimit.admin.telegram.targets import UnclearError, target_of
from bot_ratelimit.admin.words import Words, code
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
    name: str = ""
    """The command, with the prefix."""
    arguments: str = ""
    message: Message | None = None
    """The message with the command."""

    @property
    def buttons(self) -> Buttons:
        """Makes buttons in the operator's language."""
        return Buttons(self.words, self.prefix)

    def subject(self, user: int | None, chat: int | None, topic: int | None = None) -> Subject:
        """The subject under which this bot counts a user or chat."""
        return Subject(user, chat, topic, self.bot.id if self.per_bot else None)

    async def target(self, rest: str = "") -> tuple[Subject, str]:
        """Return the subject of the command (in a group, a member of it) and the other arguments.

        Raises:
            UnclearError: The command names nobody, or Telegram does not tell who is meant.
        """
        message = self.message
        assert message is not None  # noqa: S101 - a command has one
        try:
            found, other = await target_of(message, self.arguments, self.bot)
        except UnclearError as error:
            error.fields["example"] = code(f"/{self.name} 42{rest}")
            raise
        if found.user is None:
            return self.subject(None, found.chat), other
        if message.chat.type == ChatType.PRIVATE:
            return self.subject(found.user, found.user), other
        topic = message.message_thread_id if message.is_topic_message else None
        return self.subject(found.user, message.chat.id, topic), other

    async def ask(self, operation: Operation, fields: Mapping[str, Any]) -> Answer:
        """Ask for confirmation of an operation that changes something."""
        assert operation.ask is not None  # noqa: S101 - a change
        sent = checked(operation.fields, fields)
        question = await operation.ask(self.control, self.words, sent)
        kept = sent.model_dump()
        if question.version is not None:
            kept["if_version"] = question.version
        token = await self.confirmations.ask(self.operator, {"do": operation.name, "fields": kept})
        return Answer(
            asked(question), self.buttons.confirmation(question.yes, self.operator, token)
        )

    def check_needs(self, operation: Operation) -> None:
        """Raise UnclearError if the bot lacks an option that the operation needs."""
        has = {"": True, "live": self.live, "statistics": self.control.limiter.keeps_statistics}
        if not has[operation.needs]:
            option = code(f"RateLimitMiddleware(..., {operation.needs}=True)")
            raise UnclearError("That needs {option} in the bot.", option=option)


def fields_of(subject: Subject) -> dict[str, Any]:
    """A subject as fields of an operation."""
    if subject.user is None:
        found: dict[str, Any] = {"id": subject.chat}
    else:
        found = {"id": subject.user, "chat": subject.chat}
        if subject.user < 0:  # a channel that writes in groups
            found["as_user"] = True
    more = {"topic": subject.topic, "bot": subject.bot}
    return found | {name: each for name, each in more.items() if each is not None}

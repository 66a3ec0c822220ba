"""admin_router: the operators' commands as a router of the bot, which other users cannot see."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Iterable, Iterator
from typing import Any, Final

from aiogram import Bot, Router
from aiogram.exceptions import TelegramBadRequest, TelegramForbiddenError
from aiogram.filters import Command, CommandObject
from aiogram.types import CallbackQuery, LinkPreviewOptions, Message, User

from bot_ratelimit.admin.changes import ConflictError
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.fields import check_admins, checked
from bot_ratelimit.admin.operations import OPERATIONS
from bot_ratelimit.admin.telegram.commands import COMMANDS, Confirmations, Operator
from bot_ratelimit.admin.telegram.messages import Answer, ButtonPress, page_of
from bot_ratelimit.admin.telegram.targets import UnclearError
from bot_ratelimit.admin.words import Marked, Words, as_html, clipped, code, joined
from bot_ratelimit.errors import ConfigError, RateLimitError, StorageError
from bot_ratelimit.incoming.middleware import RateLimitMiddleware

log = logging.getLogger("bot_ratelimit")

_PREFIX: Final = re.compile(r"[a-z0-9_]{0,6}")
_QUOTED: Final = re.compile("`([a-z]+)`")
_AS_HTML: Final[dict[str, Any]] = {
    "parse_mode": "HTML",
    "link_preview_options": LinkPreviewOptions(is_disabled=True),
}
_GONE: Final = (
    "This question was answered already, or is older than two minutes. Repeat the command."
)
_CONFLICT: Final = (
    "Somebody else has changed the limits in the meantime; nothing was changed. Look again, and "
    "repeat the command."
)
# The bot's middlewares leave these handlers alone.
_FLAGS: Final[dict[str, Any]] = {"rate_limit": False, "callback_answer": {"disabled": True}}


def admin_router(
    middleware: RateLimitMiddleware, admins: Iterable[int], *, prefix: str = ""
) -> Router:
    """The operators' commands: `/limits`, `/who`, `/forgive`, `/ban`, `/setlimit` and others.

    ::

        dispatcher.include_router(admin_router(middleware, admins=[42]))

    For other users its handlers do not match, so the bot's own handlers run, or none. Include it
    before the bot's own routers. The admins are exempt from the middleware's limits. The commands
    also work in groups; the answer goes to the admin's private chat with the bot.

    Args:
        middleware: The middleware whose limits the commands show and change.
        admins: Ids of the users who may use the commands; anonymous admins of groups cannot.
        prefix: Put before each name, as in `/rl_ban`, if the bot has such commands already: up to
            6 characters of `a-z`, `0-9` and `_`.

    Raises:
        ConfigError: An argument is invalid.
    """
    if not isinstance(middleware, RateLimitMiddleware):
        raise ConfigError(
            f"admin_router({middleware!r:.80}): expected the RateLimitMiddleware whose limits the "
            "commands control"
        )
    ids = check_admins(admins)
    if not ids:
        raise ConfigError("admins is empty: pass at least one user id, or leave the router out")
    if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
        raise ConfigError(f"prefix={prefix!r}: expected up to 6 of a-z, 0-9 and _, such as 'rl_'")
    handlers = _Handlers(middleware, ids, prefix)
    middleware.exempt(handlers.admins)
    router = Router(name="bot_ratelimit.admin")
    router.message.filter(handlers.is_command_of_admin)
    router.callback_query.filter(handlers.is_press_of_admin)
    router.startup.register(_warn_if_hidden)
    commands = Command(*(prefix + name for name in COMMANDS), ignore_case=True)
    router.message.register(handlers.handle_command, commands, flags=_FLAGS)
    router.callback_query.register(handlers.handle_button, flags=_FLAGS)
    return router


class _Handlers:
    """Handles the admins' commands and buttons."""

    def __init__(
        self, middleware: RateLimitMiddleware, admins: frozenset[int], prefix: str
    ) -> None:
        self.admins = admins
        self._middleware, self._prefix = middleware, prefix
        self._confirmations = Confirmations(middleware.limiter)

    async def is_command_of_admin(self, message: Message) -> bool:
        """Whether an admin wrote this personally: not a channel, and not a forwarded message."""
        return (
            message.from_user is not None
            and message.from_user.id in self.admins
            and message.sender_chat is None
            and message.forward_origin is None
            and message.via_bot is None
        )

    async def is_press_of_admin(self, query: CallbackQuery) -> bool | dict[str, Any]:
        """Whether an admin presses one of this router's buttons."""
        if query.from_user.id not in self.admins or not query.data:
            return False
        try:
            press = ButtonPress.unpack(query.data)
        except (TypeError, ValueError):  # a button of the bot's own
            return False
        return press.namespace == self._prefix and {"press": press}

    async def handle_command(self, message: Message, command: CommandObject, bot: Bot) -> None:
        """Answer a command."""
        assert message.from_user is not None  # noqa: S101 - the filter has looked
        operator = self._operator(message.from_user, bot)
        name = command.command.lower().removeprefix(self._prefix)
        found = operator.answer(name, command.args or "", message)
        await self._send(operator, message, await self._answer_or_error(operator, found, name))

    async def handle_button(self, query: CallbackQuery, press: ButtonPress, bot: Bot) -> None:
        """Answer a button."""
        operator = self._operator(query.from_user, bot)
        if press.what in ("yes", "no"):
            await self._execute(operator, query, press, bot)
            return
        await _answer(query)
        found = await self._answer_or_error(operator, operator.pressed(press))
        await self._show(operator, query, found, bot)

    async def _execute(
        self, operator: Operator, query: CallbackQuery, press: ButtonPress, bot: Bot
    ) -> None:
        """Carry out or cancel a confirmed action, once."""
        words = operator.words
        try:
            action = await self._confirmations.take(operator.id, press.extra)
        except RateLimitError as error:  # the question stays
            await _answer(query)
            await _write(operator, bot, Answer(as_html(self._problem(words, error))))
            return
        operation = OPERATIONS.get((action or {}).get("do", ""))
        if action is None or operation is None or "fields" not in action:  # else of another version
            await _answer(query, words(_GONE))
            return
        await _answer(query)
        if press.what == "no":
            cancelled = words("Cancelled: nothing was changed.")
            await self._show(operator, query, Answer(as_html(cancelled)), bot)
            return
        if "if_version" in operation.fields.model_fields:  # waits for the instances
            await self._show(operator, query, Answer(as_html(words("One moment…"))), bot)

        async def done() -> Answer:
            sent = checked(operation.fields, action["fields"])
            sheet = operation.sheet(words, await operation.done(operator.control, sent))
            return Answer(page_of(sheet).text)

        await self._show(operator, query, await self._answer_or_error(operator, done()), bot)

    def _operator(self, user: User, bot: Bot) -> Operator:
        control = Control.of(self._middleware, by=f"{clipped(user.full_name, 64)} ({user.id})")
        return Operator(
            user.id,
            Words(user.language_code),
            control,
            self._middleware,
            bot.id,
            self._prefix,
            self._confirmations,
        )

    async def _send(self, operator: Operator, message: Message, answer: Answer) -> None:
        """Answer in the private chat, wherever the command was given."""
        assert message.bot is not None  # noqa: S101 - it came through a bot
        try:
            await _write(operator, message.bot, answer)
        except (TelegramForbiddenError, TelegramBadRequest) as error:
            if isinstance(error, TelegramBadRequest) and "chat not found" not in error.message:
                raise
            text = "I answer in private: open a chat with me and press Start."
            await message.reply(as_html(operator.words(text)), **_AS_HTML)

    async def _show(
        self, operator: Operator, query: CallbackQuery, answer: Answer, bot: Bot
    ) -> None:
        """Replace the message with the button by the answer, or send the answer below it."""
        if isinstance(query.message, Message):
            try:
                await query.message.edit_text(answer.text, reply_markup=answer.keyboard, **_AS_HTML)
            except TelegramBadRequest as error:
                if "not modified" in error.message:
                    return
                log.debug("An answer is sent as a new message: %s", error)
            else:
                return
        await _write(operator, bot, answer)

    async def _answer_or_error(
        self, operator: Operator, found: Awaitable[Answer], name: str = ""
    ) -> Answer:
        """The answer, or a text about the error, and how to write the command with this name."""
        words = operator.words
        try:
            return await found
        except (UnclearError, RateLimitError) as error:
            text = self._problem(words, error)
            command = COMMANDS.get(name)
            if command is not None and command.example and not isinstance(error, StorageError):
                example = code(f"/{self._prefix}{name} {command.example}")
                hint = _QUOTED.sub(
                    lambda found: code(found[1]), words(command.hint, example=example)
                )
                text = joined([text, Marked(hint)], "\n")
        return Answer(as_html(text))

    def _problem(self, words: Words, error: Exception) -> Marked:
        if isinstance(error, UnclearError):
            return words(error.text, **error.fields)
        if isinstance(error, StorageError):
            text = "Redis cannot be reached. Try again later; for details: {command}"
            return words(text, command=f"/{self._prefix}health")
        if isinstance(error, ConflictError):
            return words(_CONFLICT)
        return words("That did not work: {error}", error=code(words.known(error)))


async def _write(operator: Operator, bot: Bot, answer: Answer) -> None:
    await bot.send_message(operator.id, answer.text, reply_markup=answer.keyboard, **_AS_HTML)


async def _answer(query: CallbackQuery, alert: str | None = None) -> None:
    """Stop the button's spinner, and show an alert if there is one."""
    try:
        await query.answer(alert, show_alert=alert is not None)
    except TelegramBadRequest as error:  # pressed long ago, while the bot was down
        log.debug("A button press could not be answered: %s", error)


async def _warn_if_hidden(router: Router) -> None:
    """Warn at startup about a handler before this router that handles every message."""
    for each in _before(router):
        for handler in [] if _has_filters(each) else each.message.handlers:
            if not handler.filters:
                log.warning(
                    "admin_router: %s, on %s, handles every message, so the operators' commands "
                    "do not arrive: include admin_router before it, and register such handlers "
                    "on a router, not on the Dispatcher",
                    getattr(handler.callback, "__qualname__", repr(handler.callback)),
                    each.name,
                )
                return


def _before(router: Router) -> Iterator[Router]:
    # A router's own handlers come before those of its sub-routers, and these in their order.
    while (parent := router.parent_router) is not None:
        yield parent
        for sibling in parent.sub_routers[: parent.sub_routers.index(router)]:
            yield from sibling.chain_tail
        router = parent


def _has_filters(router: Router) -> bool:
    """Whether the router has filters of its own, as far as this version of aiogram shows them."""
    return bool(getattr(getattr(router.message, "_handler", None), "filters", None))

"""admin_router: the operators' commands as a router of the bot, which other users cannot see."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Iterable, Iterator
from typing import Any, Final

from aiogram import Bot, Router
from aiogram.enums import ChatType
from aiogram.exceptions import TelegramBadRequest, TelegramForbiddenError
from aiogram.filters import Command, CommandObject
from aiogram.types import CallbackQuery, LinkPreviewOptions, Message, User

from bot_ratelimit.admin.changes import ConflictError
from bot_ratelimit.admin.confirmations import Confirmations
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.fields import check_admins, checked
from bot_ratelimit.admin.operations import OPERATIONS
from bot_ratelimit.admin.telegram.buttons import ButtonPress
from bot_ratelimit.admin.telegram.commands import COMMANDS, answer, pressed
from bot_ratelimit.admin.telegram.context import Context
from bot_ratelimit.admin.telegram.messages import Answer, page_of
from bot_ratelimit.admin.telegram.targets import UnclearError
from bot_ratelimit.admin.words import Marked, Words, as_html, clipped, code, plain
from bot_ratelimit.errors import ConfigError, RateLimitError, StorageError
from bot_ratelimit.incoming.middleware import RateLimitMiddleware

log = logging.getLogger("bot_ratelimit")

_PREFIX: Final = re.compile(r"[a-z0-9_]{0,6}")
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
        context = self._context(
            message.from_user, bot, command.command.lower(), command.args or "", message
        )
        found = await self._answer_or_error(context, answer(context))
        await self._send(context, message, found)

    async def handle_button(self, query: CallbackQuery, press: ButtonPress, bot: Bot) -> None:
        """Answer a button."""
        context = self._context(query.from_user, bot)
        if press.what not in ("yes", "no"):
            await _answer(query)
            found = await self._answer_or_error(context, pressed(context, press))
            await self._show(context, query, found)
        elif press.first != context.operator:
            text = "Only the admin who gave the command can answer this."
            await _answer(query, context.words(text))
        else:
            await self._execute(context, query, press)

    async def _execute(self, context: Context, query: CallbackQuery, press: ButtonPress) -> None:
        """Carry out or cancel a confirmed action, once."""
        words = context.words
        try:
            action = await self._confirmations.take(context.operator, press.extra)
        except StorageError:
            await _answer(query, plain(self._away(words)))
            return
        except RateLimitError as error:  # too long for an alert; the question stays
            await _answer(query)
            assert query.bot is not None  # noqa: S101 - it came through a bot
            await self._write(context, query.bot, Answer(as_html(_wrong(words, error))))
            return
        operation = OPERATIONS.get((action or {}).get("do", ""))
        if action is None or operation is None or "fields" not in action:  # else of another version
            await _answer(query, words(_GONE))
            return
        await _answer(query)
        if press.what == "no":
            cancelled = words("Cancelled: nothing was changed.")
            await self._show(context, query, Answer(as_html(cancelled)))
            return
        if operation.needs == "live":  # waits for the instances
            await self._show(context, query, Answer(as_html(words("One moment…"))))

        async def done() -> Answer:
            sent = checked(operation.fields, action["fields"])
            sheet = operation.sheet(words, await operation.done(context.control, sent))
            return Answer(page_of(sheet, 0)[0])

        await self._show(context, query, await self._answer_or_error(context, done()))

    def _context(self, user: User, bot: Bot, *command: Any) -> Context:
        control = Control.of(self._middleware, by=f"{clipped(user.full_name, 64)} ({user.id})")
        return Context(control, Words(user.language_code), user.id, self.admins, bot,
                       self._middleware.per_bot, self._middleware.live is not None, self._prefix,
                       self._confirmations, *command)  # fmt: skip

    async def _send(self, context: Context, message: Message, answer: Answer) -> None:
        """Answer in the private chat, wherever the command was given."""
        assert message.bot is not None  # noqa: S101 - it came through a bot
        if message.chat.type == ChatType.PRIVATE:
            await message.answer(answer.text, reply_markup=answer.keyboard, **_AS_HTML)
            return
        try:
            await self._write(context, message.bot, answer)
        except (TelegramForbiddenError, TelegramBadRequest) as error:
            if isinstance(error, TelegramBadRequest) and "chat not found" not in error.message:
                raise
            text = "I answer in private: open a chat with me and press Start."
            await message.reply(as_html(context.words(text)), **_AS_HTML)

    async def _show(self, context: Context, query: CallbackQuery, answer: Answer) -> None:
        """Replace the message with the button by the answer, or send the answer below it."""
        assert query.bot is not None  # noqa: S101 - it came through a bot
        if isinstance(query.message, Message):
            try:
                await query.message.edit_text(answer.text, reply_markup=answer.keyboard, **_AS_HTML)
            except TelegramBadRequest as error:
                if "not modified" in error.message:
                    return
                log.debug("An answer is sent as a new message: %s", error)
            else:
                return
        await self._write(context, query.bot, answer)

    async def _answer_or_error(self, context: Context, found: Awaitable[Answer]) -> Answer:
        """The answer, or a text about the error."""
        words = context.words
        try:
            return await found
        except UnclearError as error:
            text = words(error.text, **error.fields)
        except StorageError:
            text = self._away(words)
        except ConflictError:
            text = words(_CONFLICT)
        except RateLimitError as error:
            text = _wrong(words, error)
        return Answer(as_html(text))

    def _away(self, words: Words) -> Marked:
        text = "Redis cannot be reached. Try again later; for details: {command}"
        return words(text, command=f"/{self._prefix}health")

    async def _write(self, context: Context, bot: Bot, answer: Answer) -> None:
        await bot.send_message(
            context.operator, answer.text, reply_markup=answer.keyboard, **_AS_HTML
        )


async def _answer(query: CallbackQuery, alert: str | None = None) -> None:
    """Stop the button's spinner, and show an alert if there is one."""
    try:
        await query.answer(alert, show_alert=alert is not None)
    except TelegramBadRequest as error:  # pressed long ago, while the bot was down
        log.debug("A button press could not be answered: %s", error)


def _wrong(words: Words, error: Exception) -> Marked:
    return words("That did not work: {error}", error=code(words.known(error)))


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

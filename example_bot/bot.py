"""The bot's handlers and their limits: cheap answers, expensive ones, a payment."""

import asyncio
import logging
from collections.abc import Collection

from aiogram import Dispatcher, F, Router, flags
from aiogram.filters import Command, CommandStart
from aiogram.types import (
    CallbackQuery,
    ErrorEvent,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    LabeledPrice,
    Message,
    PreCheckoutQuery,
    ReactionTypeEmoji,
)

from bot_ratelimit import (
    Concurrency,
    Decision,
    InFlight,
    Limiter,
    RateLimitMiddleware,
    Scope,
    Subject,
)
from bot_ratelimit.admin import admin_router

PONG = "pong"
"""The beginning of the answer to a handled `/ping`; a refusal never begins like this."""
THANKS = "Thank you! The star has arrived."
WORKING, REPORT = "Working on it …", "Report: everything is in order."

REPORTS = Concurrency(1, Scope.GLOBAL, "report")
"""One report at a time, over all instances of the bot."""

PING_BUTTON = InlineKeyboardMarkup(
    inline_keyboard=[[InlineKeyboardButton(text="Ping", callback_data="ping")]]
)

_logger = logging.getLogger(__name__)


async def start(message: Message) -> None:
    """`/start`: list the commands."""
    await message.answer(
        "/ping answers at once, /report takes a moment, /donate asks for a star. The button works "
        "too, and so do photos.",
        reply_markup=PING_BUTTON,
    )


async def ping(message: Message, rate_limit: Decision | None) -> None:
    """`/ping`: answer, and say how many more messages are allowed now."""
    await message.answer(_pong(rate_limit), reply_markup=PING_BUTTON)


async def ping_button(callback: CallbackQuery, rate_limit: Decision | None) -> None:
    """The button: the same answer, as an alert over the chat."""
    await callback.answer(_pong(rate_limit))


async def photo(message: Message) -> None:
    """A photo: thumbs up. An album comes as a message for each photo, and counts as one."""
    await message.react([ReactionTypeEmoji(emoji="\N{THUMBS UP SIGN}")])


@flags.rate_limit(limit="2/minute", key="report")
async def report(message: Message, limiter: Limiter) -> None:
    """`/report`: stands for a slow query, a paid API, a picture to draw.

    It has a stricter limit of its own instead of everyone's. All instances of the bot together
    make one report at a time; other users wait for their turn.
    """
    async with limiter.slot(REPORTS, Subject(), timeout=30) as slot:
        if not slot.allowed:
            await message.answer("Too many people want a report. Please try again later.")
            return
        progress = await message.answer(WORKING)
        await asyncio.sleep(1.0)
        await progress.edit_text(REPORT)


async def donate(message: Message) -> None:
    """`/donate`: an invoice for one Telegram Star."""
    prices = [LabeledPrice(label="A star", amount=1)]
    await message.answer_invoice("A star", "For the example bot.", "donation", "XTR", prices)


async def approve(query: PreCheckoutQuery) -> None:
    """Telegram's last question before a payment."""
    await query.answer(ok=True)


async def thank(message: Message) -> None:
    """A user has paid. Neither this update nor the question before it is ever refused."""
    await message.answer(THANKS)


async def log_error(event: ErrorEvent) -> None:
    """Log a handler's exception; without this, Telegram would send the update again and again."""
    _logger.error("Update %d failed", event.update.update_id, exc_info=event.exception)


def build_dispatcher(rate_limit: RateLimitMiddleware, admins: Collection[int] = ()) -> Dispatcher:
    """Put the handlers, their limit, and the commands of these operators together.

    Handlers are registered here and not by decorators on a module's router, because a router
    belongs to one dispatcher and the demo runs three of them in one process.
    """
    router = Router(name="example")
    router.message.register(start, CommandStart())
    router.message.register(ping, Command("ping"))
    router.callback_query.register(ping_button)
    router.message.register(photo, F.photo)
    router.message.register(report, Command("report"))
    router.message.register(donate, Command("donate"))
    router.pre_checkout_query.register(approve)
    router.message.register(thank, F.successful_payment)

    dispatcher = Dispatcher(limiter=rate_limit.limiter)
    if admins:
        dispatcher.include_router(admin_router(rate_limit, admins))
    dispatcher.include_router(router)
    dispatcher.errors.register(log_error)

    rate_limit.setup(dispatcher)
    InFlight().setup(dispatcher)
    return dispatcher


def _pong(decision: Decision | None) -> str:
    # No limit applies to this user, or Redis is down and the count is unknown: say no number.
    if decision is None or decision.source == "policy":
        return PONG
    return f"{PONG}, {decision.remaining} left"

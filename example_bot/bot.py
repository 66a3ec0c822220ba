"""What the bot can do, and what each of it may cost: two cheap commands, a dear one, a button."""

import asyncio
import logging

from aiogram import Dispatcher, Router
from aiogram.filters import Command, CommandStart
from aiogram.types import (
    CallbackQuery,
    ErrorEvent,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    Message,
)

from bot_ratelimit import Decision, RateLimitMiddleware, Rule
from example_bot.inflight import InFlight

REPORT_RULE = Rule("2/minute", name="report")
"""A report keeps the bot busy for a second, so it has a stricter limit of its own.

The name keeps its count apart from that of all messages: `<prefix>:ratelimit:report:<user>`.
"""

PONG = "pong"
"""How the answer to a handled `/ping` begins; a refusal never does."""

PING_BUTTON = InlineKeyboardMarkup(
    inline_keyboard=[[InlineKeyboardButton(text="Ping", callback_data="ping")]]
)

_logger = logging.getLogger(__name__)


async def start(message: Message) -> None:
    """`/start`: say what there is."""
    await message.answer(
        "/ping answers at once, /report takes a moment, and the button works too.",
        reply_markup=PING_BUTTON,
    )


async def ping(message: Message, rate_limit: Decision) -> None:
    """`/ping`: answer, and say how many more would be answered now."""
    await message.answer(_pong(rate_limit), reply_markup=PING_BUTTON)


async def ping_button(callback: CallbackQuery, rate_limit: Decision) -> None:
    """The button: the same answer, shown over the chat."""
    await callback.answer(_pong(rate_limit))


async def report(message: Message) -> None:
    """`/report`: stands for a slow query, a paid API, a picture to draw."""
    progress = await message.answer("Working on it …")
    await asyncio.sleep(1.0)
    await progress.edit_text("Report: everything is in order.")


async def log_error(event: ErrorEvent) -> bool:
    """Log what a handler raised, and call the update done.

    Without this a webhook would answer 500, and Telegram would send the same update, with the
    same error, again and again.
    """
    _logger.error("Update %d failed", event.update.update_id, exc_info=event.exception)
    return True


def build_dispatcher(everything: RateLimitMiddleware, reports: RateLimitMiddleware) -> Dispatcher:
    """Put the handlers and their limits together.

    Handlers are registered here and not by decorators on a module's router, because a router
    belongs to one dispatcher and the demo runs three of them in one process.

    Args:
        everything: Counts messages and button presses of a user together.
        reports: Counts reports, and nothing else; a report has to pass both.
    """
    cheap = Router(name="cheap")
    cheap.message.register(start, CommandStart())
    cheap.message.register(ping, Command("ping"))
    cheap.callback_query.register(ping_button)

    expensive = Router(name="expensive")
    expensive.message.middleware(reports)
    expensive.message.register(report, Command("report"))

    dispatcher = Dispatcher()
    dispatcher.message.middleware(everything)
    dispatcher.callback_query.middleware(everything)
    dispatcher.include_routers(cheap, expensive)
    dispatcher.errors.register(log_error)

    in_flight = InFlight()
    dispatcher.update.outer_middleware(in_flight)
    # First of the shutdown callbacks: what the handlers still need must not be closed before.
    dispatcher.shutdown.register(in_flight.drain)
    return dispatcher


def _pong(decision: Decision) -> str:
    if decision.source == "policy":  # Redis is away: nobody knows the count, so claim none.
        return PONG
    return f"{PONG}, {decision.remaining} left"

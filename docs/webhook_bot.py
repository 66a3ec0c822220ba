"""A bot in several instances behind a proxy, which must pass only /webhook; see docs/start.md."""

import asyncio
import hashlib
import logging
import os
import sys

from aiogram import Bot, Dispatcher
from aiogram.exceptions import AiogramError, TelegramRetryAfter
from aiogram.types import ErrorEvent, Message
from aiogram.utils.token import TokenValidationError
from aiogram.webhook.aiohttp_server import SimpleRequestHandler, setup_application
from aiohttp import web

from bot_ratelimit import InFlight, LogObserver, OutgoingLimits, RateLimitMiddleware, Settings
from bot_ratelimit.admin import admin_app
from bot_ratelimit.admin.health import add_health
from bot_ratelimit.metrics import PrometheusMetrics


def required(name: str) -> str:
    """The variable, or the end of the bot with one line and status 1."""
    return os.environ.get(name) or sys.exit(f"{name} is not set")


TOKEN = required("BOT_TOKEN")
WEBHOOK_URL = required("WEBHOOK_URL")
# The same for all instances, because it is computed from the token.
SECRET = os.environ.get("WEBHOOK_SECRET") or hashlib.sha256(TOKEN.encode()).hexdigest()

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
dp = Dispatcher()
watching = [LogObserver(), PrometheusMetrics()]
limits = RateLimitMiddleware.from_settings(live=True, statistics=True, observer=watching)
limits.setup(dp)
InFlight().setup(dp)


@dp.message()
async def echo(message: Message) -> None:
    """Stands for your handlers."""
    await message.answer(message.text or "What is this?")


@dp.errors()
async def log_error(event: ErrorEvent) -> None:
    """Without it, the webhook answers 500, and Telegram sends the update again and again."""
    logging.error("Update %d failed", event.update.update_id, exc_info=event.exception)


@dp.startup()
async def set_webhook(bot: Bot) -> None:
    """Nobody deletes it at shutdown, because the other instances are still there."""
    try:
        await bot.set_webhook(
            WEBHOOK_URL,
            secret_token=SECRET,
            allowed_updates=dp.resolve_used_update_types(),
        )
    except TelegramRetryAfter as error:  # several instances start at the same time
        await asyncio.sleep(error.retry_after)
        await set_webhook(bot)
    except AiogramError:
        await bot.session.close()
        raise


def build_app() -> web.Application:
    """/webhook, and on the same port /health, /ready, /metrics and the page for operators."""
    bot = Bot(TOKEN)
    OutgoingLimits.from_settings(statistics=True, observer=watching).setup(bot, dp)
    app = web.Application()
    setup_application(app, dp, bot=bot)  # first, so that the bot's session is closed last
    # In the foreground: if this instance dies, Telegram sends the update to another one.
    updates = SimpleRequestHandler(dp, bot, handle_in_background=False, secret_token=SECRET)
    updates.register(app, path="/webhook")
    add_health(app, limits)
    if Settings().rate_limit_admin_token:
        app.add_subapp("/admin/", admin_app(limits))
    return app


def main() -> None:
    """Serve until the process is told to stop."""
    host = os.environ.get("WEB_SERVER_HOST", "127.0.0.1")
    port = int(os.environ.get("WEB_SERVER_PORT", "8080"))
    try:
        web.run_app(build_app(), host=host, port=port, access_log=None)
    except TokenValidationError:
        sys.exit("BOT_TOKEN is malformed: copy the token from @BotFather")
    except (AiogramError, OSError) as error:  # OSError: the port is in use
        sys.exit(f"The bot cannot start: {error}")


if __name__ == "__main__":
    main()

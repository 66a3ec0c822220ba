"""How updates reach the bot: long polling for one instance, a webhook for any number of them."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiogram import Bot, Dispatcher
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import AiogramError, TelegramRetryAfter
from aiogram.webhook.aiohttp_server import SimpleRequestHandler, setup_application
from aiohttp import web

from bot_ratelimit import ConfigError, RateLimitMiddleware, Settings
from bot_ratelimit.admin.health import add_health, health_app
from example_bot.settings import BotSettings

ADMIN_PATH = "/admin/"  # of the page for operators

_logger = logging.getLogger(__name__)


def build_bot(settings: BotSettings) -> Bot:
    """The client through which the bot talks to the Bot API."""
    api = TelegramAPIServer.from_base(settings.bot_api_url)
    return Bot(settings.token, session=AiohttpSession(api=api))


def build_admin(
    settings: BotSettings, limits: Settings, rate_limit: RateLimitMiddleware
) -> web.Application | None:
    """The page for operators, also as a Mini App of the bot; None without its token."""
    if limits.rate_limit_admin_token is None:
        return None
    from bot_ratelimit.admin import admin_app  # with jinja2, which only the page needs

    admins = settings.admin_ids
    return admin_app(rate_limit, admins=admins, bot_token=settings.token, settings=limits)


async def run_polling(
    settings: BotSettings,
    bot: Bot,
    dispatcher: Dispatcher,
    rate_limit: RateLimitMiddleware,
    admin: web.Application | None = None,
) -> None:
    """Fetch updates, in a single instance; with HEALTH_PORT, serve the health pages there."""
    dispatcher.startup.register(freeze)
    async with bot, _pages(settings, rate_limit, admin):
        # While a webhook is set, Telegram answers every getUpdates with a conflict.
        await bot.delete_webhook()
        await dispatcher.start_polling(bot)


@asynccontextmanager
async def _pages(
    settings: BotSettings, rate_limit: RateLimitMiddleware, admin: web.Application | None
) -> AsyncIterator[None]:
    if settings.health_port is None:
        if admin is not None:
            _logger.warning("The page for operators has no server: set HEALTH_PORT, or WEBHOOK_URL")
        yield
        return
    app = health_app(rate_limit)
    if admin is not None:
        app.add_subapp(ADMIN_PATH, admin)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=5.0)
    await runner.setup()
    host, port = settings.web_server_host, settings.health_port
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise _cannot_listen("HEALTH_PORT", host, port, error) from None
        _logger.info("Health and metrics at http://%s:%d/", host, port)
        yield
    finally:
        await runner.cleanup()


def build_webhook_app(
    settings: BotSettings,
    bot: Bot,
    dispatcher: Dispatcher,
    rate_limit: RateLimitMiddleware | None = None,
    admin: web.Application | None = None,
) -> web.Application:
    """The web application that takes updates; every instance runs one behind a load balancer."""

    async def set_webhook() -> None:
        # Every instance sets the same webhook, and none deletes it, because others need it.
        try:
            await bot.set_webhook(
                settings.webhook_url or "",
                secret_token=settings.secret_token,
                allowed_updates=dispatcher.resolve_used_update_types(),
            )
        except TelegramRetryAfter as error:  # several instances start at the same time
            await asyncio.sleep(error.retry_after)
            await set_webhook()
        except AiogramError:
            await bot.session.close()  # aiohttp calls no shutdown hook after a failed start
            raise

    dispatcher.startup.register(set_webhook)
    app = web.Application()
    # The order matters: at shutdown the dispatcher waits for the updates that are being handled,
    # and only then the request handler closes the bot's session.
    setup_application(app, dispatcher, bot=bot)
    # In the foreground: Telegram sends again what an instance that dies has not answered.
    secret = settings.secret_token
    updates = SimpleRequestHandler(dispatcher, bot, handle_in_background=False, secret_token=secret)
    updates.register(app, path=settings.webhook_path)
    if rate_limit is not None:
        add_health(app, rate_limit)
    if admin is not None:
        app.add_subapp(ADMIN_PATH, admin)
    return app


def run_webhook(settings: BotSettings, app: web.Application, dispatcher: Dispatcher) -> None:
    """Serve the webhook until SIGINT or SIGTERM."""
    host, port = settings.web_server_host, settings.web_server_port

    def announce(_: str) -> None:  # aiohttp calls this once it listens
        _logger.info("Listening on %s:%d for %s", host, port, settings.webhook_path)

    dispatcher.startup.register(freeze)
    try:
        web.run_app(app, host=host, port=port, print=announce, access_log=None)
    except OSError as error:
        raise _cannot_listen("WEB_SERVER_PORT", host, port, error) from None


def _cannot_listen(variable: str, host: str, port: int, error: OSError) -> ConfigError:
    return ConfigError(
        f"WEB_SERVER_HOST={host!r}, {variable}={port}: cannot listen there "
        f"({error.strerror}); choose another port, or stop what uses it"
    )


async def freeze() -> None:
    """Exclude objects from the startup from garbage collection: floods take 39 % less time."""
    gc.collect()  # first, because frozen garbage would be kept forever
    gc.freeze()

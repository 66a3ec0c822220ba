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
from example_bot.health import PATH
from example_bot.settings import BotSettings

ADMIN_PATH = "/admin/"
"""The path of the page for operators, on the server of the webhook or of the health pages."""

_logger = logging.getLogger(__name__)


def build_bot(settings: BotSettings) -> Bot:
    """The client through which the bot talks to the Bot API.

    Raises:
        ConfigError: There is no token.
    """
    if settings.bot_token is None:
        raise ConfigError("BOT_TOKEN is not set")
    api = TelegramAPIServer.from_base(settings.bot_api_url)
    return Bot(settings.bot_token.get_secret_value(), session=AiohttpSession(api=api))


def build_admin(
    settings: BotSettings, limits: Settings, rate_limit: RateLimitMiddleware
) -> web.Application | None:
    """The page for operators; None without RATE_LIMIT_ADMIN_TOKEN.

    Those in ADMIN_IDS can open it as a Mini App of the bot, too.

    Raises:
        ConfigError: The token is too simple, or the page's extra is not installed.
    """
    if limits.rate_limit_admin_token is None:
        return None
    from bot_ratelimit.admin import admin_app  # with jinja2, which only the page needs

    token = settings.bot_token.get_secret_value() if settings.bot_token else None
    return admin_app(rate_limit, admins=settings.admin_ids, bot_token=token, settings=limits)


async def run_polling(
    settings: BotSettings,
    bot: Bot,
    dispatcher: Dispatcher,
    rate_limit: RateLimitMiddleware,
    admin: web.Application | None = None,
) -> None:
    """Fetch updates until SIGINT or SIGTERM; with HEALTH_PORT, serve the health pages there.

    Two pollers with one token get "409 Conflict" from Telegram: this is for a single instance.
    """
    # While a webhook is set, Telegram answers every getUpdates with a conflict.
    dispatcher.startup.register(freeze)
    async with bot, _pages(settings, rate_limit, admin):
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
            raise ConfigError(_cannot_listen("HEALTH_PORT", host, port, error)) from None
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
    """The web application that takes updates; every instance runs one behind a load balancer.

    An update is answered when it has been handled, not before: Telegram sends again what an
    instance that dies has not answered, and never has more than `max_connections` under way.
    """

    async def set_webhook() -> None:
        # Every instance sets the same webhook, so the order does not matter. No instance deletes
        # it at shutdown, because the other instances still need it.
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
    SimpleRequestHandler(
        dispatcher, bot, handle_in_background=False, secret_token=settings.secret_token
    ).register(app, path=settings.webhook_path)
    if rate_limit is not None:
        add_health(app, rate_limit)
    else:
        app.router.add_get(PATH, _healthy)
    if admin is not None:
        app.add_subapp(ADMIN_PATH, admin)
    return app


def run_webhook(
    settings: BotSettings,
    bot: Bot,
    dispatcher: Dispatcher,
    rate_limit: RateLimitMiddleware,
    admin: web.Application | None = None,
) -> None:
    """Serve the webhook until SIGINT or SIGTERM.

    Raises:
        ConfigError: The address or the port cannot be listened on.
    """
    host, port = settings.web_server_host, settings.web_server_port

    def announce(_: str) -> None:  # aiohttp calls this once it listens
        _logger.info("Listening on %s:%d for %s", host, port, settings.webhook_path)

    app = build_webhook_app(settings, bot, dispatcher, rate_limit, admin)
    dispatcher.startup.register(freeze)
    try:
        web.run_app(app, host=host, port=port, print=announce, access_log=None)
    except OSError as error:
        raise ConfigError(_cannot_listen("WEB_SERVER_PORT", host, port, error)) from None


def _cannot_listen(variable: str, host: str, port: int, error: OSError) -> str:
    return (
        f"WEB_SERVER_HOST={host!r}, {variable}={port}: cannot listen there "
        f"({error.strerror}); choose another port, or stop what uses it"
    )


async def freeze() -> None:
    """Exclude all objects from the startup from garbage collection.

    The modules, classes and handlers of this bot are about 200,000 objects that live as long as
    the process. The collector looks at all of them in each full collection, and a flood of
    updates brings on many: frozen once at the end of the start, a flood of 5,000 updates takes
    about 39 % less time.
    """
    gc.collect()  # first, because frozen garbage would be kept forever
    gc.freeze()


async def _healthy(_: web.Request) -> web.Response:
    # An answer shows that the event loop runs. Redis is not checked: the bot works without it, and
    # restarting instances during an outage would only make things worse.
    return web.Response(text="ok")

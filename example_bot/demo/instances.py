"""Several instances of the example bot in one process, each as complete as in its own process."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from aiogram import Dispatcher
from aiohttp import web
from pydantic import SecretStr
from redis.asyncio import Redis

from bot_ratelimit import RateLimitMiddleware
from example_bot.bot import build_dispatcher
from example_bot.demo.botapi import TOKEN, BotApi
from example_bot.serve import build_bot, build_webhook_app
from example_bot.settings import BotSettings

# The bots, Redis and Telegram share one processor here, and a busy machine may delay all of them at
# once. With the default timeout of 0.25 s, a message could then pass uncounted.
TIMEOUT = 2.0


@asynccontextmanager
async def instances(
    api: BotApi,
    count: int,
    rate_limit: str,
    key_prefix: str,
    new_client: Callable[[], Redis] | None = None,
) -> AsyncIterator[None]:
    """Run so many instances of the bot, each with its own client; None for memory."""
    async with AsyncExitStack() as stack:
        for _ in range(count):
            client = new_client() if new_client else None
            if client is not None:
                stack.push_async_callback(client.aclose)
            middleware = RateLimitMiddleware(rate_limit, client, key_prefix, timeout=TIMEOUT)
            runner = await serve(api, build_dispatcher(middleware))
            stack.push_async_callback(runner.cleanup)
        yield


async def serve(api: BotApi, dispatcher: Dispatcher) -> web.AppRunner:
    """Run one instance with these handlers, at a webhook of its own, until `cleanup`."""
    # The bot sets its webhook before the server listens, so the port is reserved first.
    listener = socket.create_server(("127.0.0.1", 0))
    # Constructed, not loaded: the demo must not use anything from the environment or .env.
    settings = BotSettings.model_construct(
        bot_token=SecretStr(TOKEN),
        webhook_url=f"http://127.0.0.1:{listener.getsockname()[1]}/webhook",
        webhook_secret=SecretStr("only-the-stand-in-knows-it"),
        bot_api_url=api.url,
    )
    app = build_webhook_app(settings, build_bot(settings), dispatcher)
    runner = web.AppRunner(app, access_log=None)
    try:
        await runner.setup()
        await web.SockSite(runner, listener).start()
    except BaseException:  # Ctrl-C comes as a cancellation
        listener.close()
        await runner.cleanup()
        raise
    return runner

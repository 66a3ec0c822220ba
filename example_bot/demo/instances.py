"""Several instances of the example bot in one process, each as complete as a process of its own."""

import asyncio
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

# The bots, their Redis and their Telegram share one processor here, and a busy machine may hold
# all of them up at once: the default deadline of 0.25 s would then let a message through.
DEADLINE = 2.0


@asynccontextmanager
async def instances(
    api: BotApi,
    count: int,
    rate_limit: str,
    key_prefix: str,
    new_client: Callable[[], Redis] | None = None,
) -> AsyncIterator[None]:
    """Run instances of the bot, each with a dispatcher, a bot, limits and a webhook of its own.

    Args:
        api: Where they set their webhooks.
        count: How many there are.
        rate_limit: What every user may do.
        key_prefix: What their keys begin with.
        new_client: Makes the Redis client of an instance; None for memory.
    """
    async with AsyncExitStack() as clients:
        runners: list[web.AppRunner] = []
        try:
            for _ in range(count):
                client = new_client() if new_client else None
                if client is not None:
                    clients.push_async_callback(client.aclose)
                middleware = RateLimitMiddleware(rate_limit, client, key_prefix, timeout=DEADLINE)
                runners.append(await serve(api, build_dispatcher(middleware)))
            yield
        finally:
            await asyncio.gather(*(runner.cleanup() for runner in runners))


async def serve(api: BotApi, dispatcher: Dispatcher) -> web.AppRunner:
    """Run one instance until the runner's `cleanup`, with these handlers.

    Args:
        api: Where it sets its webhook.
        dispatcher: Handles the updates that come.
    """
    # The bot tells its address before the server listens, so the port is taken first.
    listener = socket.create_server(("127.0.0.1", 0))
    # Constructed, not loaded: nothing in the environment or .env may lead the demo astray.
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

"""Three instances of the bot, a crowd that never stops, and the page on which one can watch it."""

import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
import webbrowser
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

from aiohttp import web

from bot_ratelimit import ConfigError, Penalty, RateLimitMiddleware, Rule, Scope
from bot_ratelimit.admin import admin_app
from example_bot.bot import build_dispatcher
from example_bot.demo.backend import Backend, open_backend, random_prefix
from example_bot.demo.botapi import BotApi
from example_bot.demo.dashboard.past import fill_day
from example_bot.demo.dashboard.traffic import Traffic
from example_bot.demo.instances import TIMEOUT, serve

INSTANCES: Final = 3
LIMITS: Final = (
    Rule("5/10s", name="messages"),
    Rule("60/minute", Scope.CHAT),
    Rule("200/s", Scope.GLOBAL),
)
PENALTY: Final = Penalty("20/minute", "45s", grows=True, longest="10m")
PORT: Final = 8099
"""Where the page is, if nothing else is there; else on any free port."""


def show() -> int:
    """Show it until SIGINT or SIGTERM; the exit status is 2 if it cannot begin."""
    logging.getLogger().addHandler(_bugs())
    try:
        asyncio.run(_show())
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


async def _show() -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):  # on Windows; Ctrl-C is a KeyboardInterrupt there
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    token = secrets.token_urlsafe(24)
    prefix = random_prefix()
    async with (
        # Not from .env: it must not reach for a bot's real Redis unless told to.
        open_backend(os.environ.get("REDIS_URL"), prefix) as backend,
        BotApi() as api,
        _instances(api, backend, prefix) as middlewares,
    ):
        await fill_day(middlewares[0].limiter.storage, prefix)
        async with _page(middlewares[0], token) as address:
            _introduce(backend.name, address, token)
            traffic = asyncio.create_task(Traffic(api, backend, _say).run())
            ended = asyncio.create_task(stopped.wait())
            await asyncio.wait([traffic, ended], return_when=asyncio.FIRST_COMPLETED)
            _say("Stopping ...")
            for task in (traffic, ended):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await traffic  # raises what went wrong, if it was that which ended it


@asynccontextmanager
async def _instances(
    api: BotApi, backend: Backend, prefix: str
) -> AsyncIterator[list[RateLimitMiddleware]]:
    """Run the instances of the bot; their middlewares, each on its own connection."""
    async with AsyncExitStack() as stack:
        middlewares = []
        for _ in range(INSTANCES):
            client = backend.client()
            stack.push_async_callback(client.aclose)
            middleware = RateLimitMiddleware(
                LIMITS,
                client,
                prefix,
                penalty=PENALTY,
                timeout=TIMEOUT,
                live=True,
                statistics=True,
            )
            runner = await serve(api, build_dispatcher(middleware))
            stack.push_async_callback(runner.cleanup)
            middlewares.append(middleware)
        yield middlewares


@asynccontextmanager
async def _page(middleware: RateLimitMiddleware, token: str) -> AsyncIterator[str]:
    """Serve the page for operators on loopback; its address."""
    app = web.Application()
    app.add_subapp("/admin/", admin_app(middleware, token=token))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        listener = _listen()
        await web.SockSite(runner, listener).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/admin/"
    finally:
        await runner.cleanup()


def _listen() -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", PORT))
    except OSError:
        return socket.create_server(("127.0.0.1", 0))


def _introduce(backend: str, address: str, token: str) -> None:
    _say(f"{INSTANCES} instances of one bot, {backend}, and a crowd that never stops.")
    _say("The hours before this one are made up, so that the chart has a day to show.")
    _say()
    _say(f"  Open    {address}")
    _say(f"  Token   {token}")
    _say()
    _say("Ctrl-C ends it. Meanwhile, on the page:")
    if sys.platform in {"darwin", "win32"} or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        webbrowser.open(address)


def _bugs() -> logging.Handler:
    """What shows nothing but tracebacks: an outage every minute is no news."""
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: bool(record.exc_info))
    return handler


def _say(sentence: str = "") -> None:
    print(sentence, flush=True)

"""Three instances of the bot, constant traffic, and the page for operators that shows them."""

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

from bot_ratelimit import ConfigError, OutgoingLimits, Penalty, RateLimitMiddleware, Rule, Scope
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
"""The port of the page; if it is taken, the page uses any free port."""
# Only of the demo, whose token is new at each start and which listens on loopback.
_DOOR: Final = """<!doctype html><title>bot_ratelimit</title>
<form method="post" action="/admin/login">
<input type="hidden" name="token" value="{token}"><input type="hidden" name="name" value="demo">
<button>Log in</button></form><script>document.forms[0].submit()</script>"""


def show() -> int:
    """Run the dashboard until SIGINT or SIGTERM; the exit status is 2 if it cannot start."""
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
        # Not from .env: the demo must not use a bot's real Redis by accident.
        open_backend(os.environ.get("REDIS_URL"), prefix) as backend,
        BotApi() as api,
        _instances(api, backend, prefix) as middlewares,
    ):
        await fill_day(middlewares[0].limiter.storage, prefix)
        async with _page(middlewares[0], token) as address:
            _introduce(backend.name, address)
            traffic = asyncio.create_task(Traffic(api, backend, _say).run())
            ended = asyncio.create_task(stopped.wait())
            await asyncio.wait([traffic, ended], return_when=asyncio.FIRST_COMPLETED)
            _say("Stopping ...")
            for task in (traffic, ended):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await traffic  # raises the error, if an error ended the traffic


@asynccontextmanager
async def _instances(
    api: BotApi, backend: Backend, prefix: str
) -> AsyncIterator[list[RateLimitMiddleware]]:
    """Run the instances of the bot; yields their middlewares, each with its own connection."""
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
            dispatcher = build_dispatcher(middleware)
            outgoing = OutgoingLimits(limiter=middleware.limiter, per_group=None)
            dispatcher.startup.register(outgoing.setup)
            runner = await serve(api, dispatcher)
            stack.push_async_callback(runner.cleanup)
            middlewares.append(middleware)
        yield middlewares


@asynccontextmanager
async def _page(middleware: RateLimitMiddleware, token: str) -> AsyncIterator[str]:
    """Serve the page for operators on loopback; yields a link that logs in."""
    app, door = web.Application(), f"/{secrets.token_urlsafe(16)}"

    async def enter(_: web.Request) -> web.Response:
        return web.Response(text=_DOOR.format(token=token), content_type="text/html")

    app.router.add_get(door, enter)
    app.add_subapp("/admin/", admin_app(middleware, token=token))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        listener = _listen()
        await web.SockSite(runner, listener).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}{door}"
    finally:
        await runner.cleanup()


def _listen() -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", PORT))
    except OSError:
        return socket.create_server(("127.0.0.1", 0))


def _introduce(backend: str, address: str) -> None:
    _say(f"{INSTANCES} instances of one bot, {backend}, and constant traffic.")
    _say("The numbers of the earlier hours are invented, so that the chart shows a full day.")
    _say()
    _say(f"  Open    {address}")
    _say()
    _say("Press Ctrl-C to stop. What the page shows now:")
    if sys.platform in {"darwin", "win32"} or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        webbrowser.open(address)


def _bugs() -> logging.Handler:
    """Silence the logs: the demo has an outage every minute, and logs would fill the screen."""
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: bool(record.exc_info))
    return handler


def _say(sentence: str = "") -> None:
    print(sentence, flush=True)

"""A bot behind a webhook, in a process of its own: `python -m benchmarks.webhook_bot GUARD URL`."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time

from aiogram import Bot
from aiogram.webhook.aiohttp_server import SimpleRequestHandler
from aiohttp import web

from benchmarks.bots import TOKEN, Desk
from benchmarks.contestant import Setting
from benchmarks.guards import GUARDS
from benchmarks.race import reason
from tests.servers import free_port


def main(who: str, url: str) -> None:
    logging.getLogger("bot_ratelimit").setLevel(logging.ERROR)
    desk, port = Desk(), free_port()

    async def app() -> web.Application:
        app = web.Application()
        try:
            await desk.open(GUARDS[who](), Setting(url, 100))
        except Exception as error:
            print(reason(error), flush=True)
            raise
        # In the foreground, so that an answer means that the update was handled or refused.
        handler = SimpleRequestHandler(desk.dispatcher, Bot(TOKEN), handle_in_background=False)
        handler.register(app, "/webhook")
        app.router.add_get("/stats", stats)
        app.router.add_get("/collect", collect)
        app.on_startup.append(ready)
        return app

    async def ready(app: web.Application) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, lambda: print(port, flush=True))  # it listens just after this

    async def stats(request: web.Request) -> web.Response:
        return web.json_response({"handled": desk.handled, "cpu": time.process_time()})

    async def collect(request: web.Request) -> web.Response:
        gc.collect()
        return web.json_response({})

    # As in the other races: looking through all of aiogram takes the collector 0.1 s and more,
    # which would hit one measurement and not the next.
    gc.collect()
    gc.freeze()
    web.run_app(app(), host="127.0.0.1", port=port, print=None, access_log=None)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""BotApi: a stand-in for Telegram's Bot API server on loopback, over real HTTP."""

import asyncio
import re
import time
from contextlib import suppress
from typing import Any, Self

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from example_bot.demo.floods import FloodControl
from example_bot.demo.methods import STATELESS, ApiError, Call, Params, read_params
from example_bot.demo.updates import Json
from example_bot.demo.webhooks import Delivery, Webhook

TOKEN = "1234567890:not-a-secret-it-only-opens-the-demo"
"""A token in the format of @BotFather; only the stand-in knows it."""

_TOKEN_SHAPE = re.compile(r"[0-9]+:[A-Za-z0-9_-]{35}")


class BotApi:
    """Accepts the requests of real bots, records them, and delivers updates.

    Telegram knows one webhook of a bot, with several instances behind a load balancer. Here each
    `setWebhook` adds an instance, and updates go to the instances in turn. Without `floods`, what
    bots may send has no limits.
    """

    def __init__(self, floods: FloodControl | None = None) -> None:
        self.url = ""
        """The address of the server; known when it runs."""
        self.calls: list[Call] = []
        """All requests of bots, oldest first, except `getUpdates` and those answered with 429."""
        self.refused: list[Call] = []
        """All requests that were answered with 429."""
        self.errors: dict[str, ApiError] = {}
        """Methods that fail, by lower-case name: `{"sendmessage": ApiError(403, "Forbidden")}`."""
        self.spinning: set[str] = set()
        """The ids of button presses without an answer: the button still shows its spinner."""
        self.webhooks: list[Webhook] = []
        self._floods = floods
        self._methods = STATELESS | {
            "setwebhook": self._set_webhook,
            "deletewebhook": self._delete_webhook,
        }
        self._turn = 0
        self._pending: list[Json] = []
        self._closing = False
        self._news = asyncio.Condition()
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._respond)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    async def __aenter__(self) -> Self:
        """Start the server on a free port."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = "http://{}:{}".format(*self._runner.addresses[0])
        # Telegram waits a minute for a webhook; each webhook limits its own connections.
        timeout = ClientTimeout(total=60)
        self._session = ClientSession(connector=TCPConnector(limit=0), timeout=timeout)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Stop the server; callers that wait for updates get an empty list."""
        self._closing = True
        async with self._news:
            self._news.notify_all()
        await self._session.close()
        await self._runner.cleanup()

    async def deliver(self, update: Json) -> Delivery:
        """Send an update to the next webhook and wait for its answer."""
        if not self.webhooks:
            raise LookupError("no webhook is set; a bot that polls gets its updates by enqueue()")
        if self._floods is not None and (written := update.get("message")):
            self._floods.wrote(written["chat"]["id"])
        webhook = self.webhooks[self._turn % len(self.webhooks)]
        self._turn += 1
        if press := update.get("callback_query"):
            self.spinning.add(press["id"])
        delivery, reply = await webhook.post(self._session, update)
        if method := reply.pop("method", ""):
            with suppress(ApiError):  # Telegram reports the result of such a call to nobody
                await self._run(method, reply)
        return delivery

    async def enqueue(self, update: Json) -> None:
        """Keep an update for a bot that polls with `getUpdates`."""
        async with self._news:
            self._pending.append(update)
            self._news.notify_all()

    async def called(self, method: str, times: int = 1, *, timeout: float = 10.0) -> list[Call]:
        """Wait until bots have called a method `times` times, and return these calls."""

        def found() -> list[Call]:
            return [call for call in self.calls if call.method.lower() == method.lower()]

        async with asyncio.timeout(timeout), self._news:
            await self._news.wait_for(lambda: len(found()) >= times)
        return found()

    async def _respond(self, request: web.Request) -> web.Response:
        try:
            method = self._method_in(request.path)
            result = await self._run(method, await read_params(request))
        except ApiError as error:
            return error.response()
        return web.json_response({"ok": True, "result": result})

    def _method_in(self, path: str) -> str:
        """The method in a path. As in Telegram, a malformed token gets 404 and a wrong one 401."""
        match = re.fullmatch(r"/bot([^/]+)/(\w+)", path)
        if match is None or not _TOKEN_SHAPE.fullmatch(match[1]):
            raise ApiError(404, "Not Found")
        if match[1] != TOKEN:
            raise ApiError(401, "Unauthorized")
        return match[2]

    async def _run(self, method: str, params: Params) -> Any:
        name = method.lower()
        if name == "getupdates":
            return await self._get_updates(params)
        call = Call(method, params, time.perf_counter())
        if self._floods is not None:
            try:
                self._floods.check(method, params)
            except ApiError:
                self.refused.append(call)
                raise
        async with self._news:
            self.calls.append(call)
            self._news.notify_all()
        if error := self.errors.get(name):
            raise error.with_traceback(None)
        if name not in self._methods:
            raise ApiError(404, "Not Found: method not found")
        self.spinning.discard(call.query_id)
        return self._methods[name](params)

    def _set_webhook(self, params: Params) -> bool:
        url = params.get("url", "")
        if not url:  # as in Telegram, an empty address removes the webhook
            return self._delete_webhook(params)
        self.webhooks = [webhook for webhook in self.webhooks if webhook.url != url]
        self.webhooks.append(Webhook(url, params.get("secret_token", "")))
        return True

    def _delete_webhook(self, params: Params) -> bool:
        self.webhooks.clear()
        return True

    async def _get_updates(self, params: Params) -> list[Json]:
        if self.webhooks:
            raise ApiError(409, "Conflict: can't use getUpdates method while webhook is active")
        # An offset confirms all updates below it; the others are sent again.
        offset = int(params.get("offset") or 0)
        async with self._news:
            self._pending = [each for each in self._pending if each["update_id"] >= offset]
            with suppress(TimeoutError):
                async with asyncio.timeout(float(params.get("timeout") or 0)):
                    await self._news.wait_for(lambda: self._pending or self._closing)
        return self._pending[:100]

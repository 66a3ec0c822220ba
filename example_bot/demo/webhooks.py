"""Delivers updates to a bot: one POST to its webhook, and the answer."""

import asyncio
import time
from dataclasses import dataclass, field

from aiohttp import BodyPartReader, ClientError, ClientResponse, ClientSession, MultipartReader

from example_bot.demo.methods import Params
from example_bot.demo.updates import Json


@dataclass(frozen=True, slots=True)
class Delivery:
    """What happened to an update."""

    url: str
    status: int
    """The HTTP status of its answer; 0 if there was none. Telegram repeats anything but 2xx."""
    latency: float
    """Seconds from sending the update until the bot has handled it and answers."""

    @property
    def ok(self) -> bool:
        """Whether the bot accepted the update."""
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook that a bot has set, with its secret; Telegram has 40 updates in progress there."""

    url: str
    secret: str = ""
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(40), repr=False)

    async def post(self, session: ClientSession, update: Json) -> tuple[Delivery, Params]:
        """Deliver an update; return also the method call that the answer contains, if any."""
        headers = {"X-Telegram-Bot-Api-Secret-Token": self.secret}
        async with self._slots:
            began = time.perf_counter()
            try:
                async with session.post(self.url, json=update, headers=headers) as response:
                    reply = await _method_in(response)
                    status = response.status
            except (ClientError, TimeoutError):
                status, reply = 0, {}
        return Delivery(self.url, status, time.perf_counter() - began), reply


async def _method_in(response: ClientResponse) -> Params:
    """The method call in an answer: a bot may call a method this way and save a request."""
    if response.content_type == "multipart/form-data":
        return {
            part.name: await part.text()
            async for part in MultipartReader.from_response(response)
            if isinstance(part, BodyPartReader) and part.name
        }
    await response.read()
    return {}

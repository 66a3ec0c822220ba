"""Delivers updates to a bot: one POST to its webhook, and the answer."""

import asyncio
import time
from dataclasses import dataclass, field

from aiohttp import BodyPartReader, ClientError, ClientResponse, ClientSession, MultipartReader

from example_bot.demo.methods import Params
from example_bot.demo.updates import Json

SECRET_HEADER = "X-Telegram-Bot-Api-Secret-Token"


@dataclass(frozen=True, slots=True)
class Delivery:
    """What happened to an update."""

    url: str
    """The webhook that received it."""
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
    """A webhook that a bot has set.

    Args:
        url: Where updates go.
        secret: The secret that the bot expects in the header of each update.
        max_connections: How many updates may be in progress at once; Telegram's default is 40.
    """

    url: str
    secret: str = ""
    max_connections: int = 40
    _slots: asyncio.Semaphore = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Create the semaphore that limits the updates in progress."""
        object.__setattr__(self, "_slots", asyncio.Semaphore(self.max_connections))

    async def post(self, session: ClientSession, update: Json) -> tuple[Delivery, Params]:
        """Deliver an update; return also the method call that the answer contains, if any."""
        headers = {SECRET_HEADER: self.secret} if self.secret else {}
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

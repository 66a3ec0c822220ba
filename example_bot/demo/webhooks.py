"""How the stand-in hands an update to a bot: one POST to a webhook, and what came back."""

import asyncio
import time
from dataclasses import dataclass, field

from aiohttp import BodyPartReader, ClientError, ClientResponse, ClientSession, MultipartReader

from example_bot.demo.methods import Params
from example_bot.demo.updates import Json

SECRET_HEADER = "X-Telegram-Bot-Api-Secret-Token"


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of an update."""

    url: str
    """The webhook that got it."""
    status: int
    """The HTTP status of its answer; 0 if there was none. Anything but 2xx Telegram sends again."""
    latency: float
    """Seconds from sending the update to the answer, which comes when it has been handled."""

    @property
    def ok(self) -> bool:
        """Whether the bot has taken the update."""
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook as a bot has set it.

    Args:
        url: Where updates go.
        secret: What the bot wants to see in the header of each.
        max_connections: How many updates may be under way at once; 40 is Telegram's default.
    """

    url: str
    secret: str = ""
    max_connections: int = 40
    _slots: asyncio.Semaphore = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Make room for the updates under way."""
        object.__setattr__(self, "_slots", asyncio.Semaphore(self.max_connections))

    async def post(self, session: ClientSession, update: Json) -> tuple[Delivery, Params]:
        """Deliver an update, and return also the method call that the answer holds, if any."""
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
    """A bot may answer an update with a method to call, which saves it a request of its own."""
    if response.content_type == "multipart/form-data":
        return {
            part.name: await part.text()
            async for part in MultipartReader.from_response(response)
            if isinstance(part, BodyPartReader) and part.name
        }
    await response.read()
    return {}

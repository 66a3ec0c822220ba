"""SentinelEndpoint: connects to the current primary of a Sentinel service."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from redis import exceptions
from redis.asyncio.sentinel import SentinelConnectionPool

from bot_ratelimit.errors import NotConnectedError, StorageError
from bot_ratelimit.storage.redis import driver
from bot_ratelimit.storage.redis.driver import Address
from bot_ratelimit.storage.redis.faults import unreachable
from bot_ratelimit.storage.redis.wire import Wire

ASK_TIMEOUT: Final = 4.0
"""The time-out in seconds for the answer of one sentinel, up to seven round trips.
It is below that of the whole attempt, so that the error names the sentinels."""
GATHER: Final = 0.1
"""Seconds to wait for the other sentinels after the first answer: it may have missed a failover."""
CHECK_EVERY: Final = 0.5
"""Seconds between two checks of the primary while a connection to it is being opened."""
_PASSWORD: Final = "REDIS_SENTINEL_PASSWORD, ?sentinel_password= or sentinel_kwargs"  # noqa: S105 - where one is set


class _Answer(NamedTuple):
    epoch: int
    address: Address


class SentinelEndpoint(driver.Endpoint):
    """Asks all sentinels at once, so that a dead or hanging one delays nothing.

    Of several answers, that of the latest failover counts (the highest `config-epoch`). While the
    connection is being opened the sentinels are asked again, so that a primary that hangs is left
    as soon as they have chosen another one.
    """

    def __init__(self, pool: SentinelConnectionPool, connect_timeout: float) -> None:
        super().__init__(pool)
        self._timeout = min(ASK_TIMEOUT, 0.8 * connect_timeout)
        self.name, *_ = driver.sentinels_of(pool)
        self.where = self.name

    async def connect(self) -> Wire:
        while True:
            address = await self._primary()
            self.where = "{} at {}:{}".format(self.name, *address)
            connection = self._pool.make_connection()
            connect = partial(connection.connect_to, address)
            opening = asyncio.create_task(driver.open_wire(connection, connect))
            try:
                while not (await asyncio.wait([opening], timeout=CHECK_EVERY))[0]:
                    if await self._primary() != address:
                        break
                else:
                    return opening.result()
            except BaseException:
                driver.cancel_opening(opening)
                raise
            driver.cancel_opening(opening)

    async def _primary(self) -> Address:
        name, pools, peers, forced = driver.sentinels_of(self._pool)
        asking = [asyncio.create_task(_ask(pool, name, peers, self._timeout)) for pool in pools]
        try:
            for soonest in asyncio.as_completed(asking):
                if isinstance(await soonest, _Answer):
                    break
            done, _ = await asyncio.wait(asking, timeout=GATHER)
        finally:
            for task in asking:
                task.cancel()
        found = [task.result() for task in done]
        answers = [each for each in found if isinstance(each, _Answer)]
        errors = [each for each in found if isinstance(each, StorageError)]
        if not answers:
            raise NotConnectedError(
                f"no sentinel knows the primary of {name!r}: {'; '.join(sorted(map(str, errors)))}",
                kind=errors[0].kind,
            )
        _, (host, port) = max(answers)
        return forced or host, port


async def _ask(pool: Any, service: str, peers: int, timeout: float) -> _Answer | StorageError:
    """Ask a sentinel for the primary; return its answer, or why there is none."""
    connection = pool.make_connection()
    try:
        async with asyncio.timeout(timeout):
            await driver.opened(connection, connection.connect)
            try:
                state = await _reply(connection, "MASTER", service)
                address = await _reply(connection, "GET-MASTER-ADDR-BY-NAME", service)
            finally:
                driver.close(connection)
        return read_primary(state, address, peers)
    except Exception as error:
        name = driver.Endpoint(pool).name
        return unreachable(name, error, timeout, password=_PASSWORD)


async def _reply(connection: Any, about: str, service: str) -> Any:
    await connection.send_command("SENTINEL", about, service)
    return await connection.read_response(disable_decoding=True)


def read_primary(state: Any, address: Any, peers: int) -> _Answer:
    """Read a sentinel's view of the primary.

    A primary that the sentinel reports as down (`s_down`) is an answer, too: a new one may be
    reported so until the sentinel has connected to it.
    """
    pairs = state.items() if isinstance(state, Mapping) else zip(*[iter(state)] * 2, strict=True)
    fields = {bytes(key).decode(): bytes(value).decode() for key, value in pairs}
    if int(fields["num-other-sentinels"]) < peers:
        raise exceptions.ConnectionError("the sentinel sees too few other sentinels")
    host, port = (bytes(part).decode() for part in address)
    # A new primary has this address from its promotion on, but these fields and the next epoch only
    # when all other replicas follow it, which may take minutes.
    is_newer = (host, port) != (fields["ip"], fields["port"])
    return _Answer(int(fields["config-epoch"]) + is_newer, (host, int(port)))

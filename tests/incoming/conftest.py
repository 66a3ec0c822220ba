"""Fixtures: one storage in memory or Redis, and three instances of a bot on one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from bot_ratelimit import Limiter, MemoryStorage
from bot_ratelimit.storage.base import Storage
from bot_ratelimit.testing import Clock

from .updates import STORAGES, Fleet, fleet_on


@pytest.fixture(params=STORAGES)
async def fleet(request: pytest.FixtureRequest) -> AsyncIterator[Fleet]:
    async with fleet_on(request.param, request) as fleet:
        yield fleet


@pytest.fixture
def storage(fleet: Fleet) -> Storage:
    return fleet.storages[0]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> Limiter:
    return Limiter(MemoryStorage(clock=clock))

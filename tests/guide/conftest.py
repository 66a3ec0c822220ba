"""The stage on which the programs of the guide run."""

from __future__ import annotations

import pytest
import redis

from tests.servers import Server

from .stage import Stage


@pytest.fixture
def stage(environment: pytest.MonkeyPatch, redis_server: Server, no_metrics_yet: None) -> Stage:
    """An empty Redis, an empty directory, and a Telegram that takes everything."""
    with redis.Redis(port=redis_server.port) as client:
        client.flushall()
    return Stage(environment, redis_server)

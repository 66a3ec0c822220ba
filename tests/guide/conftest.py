"""The stage on which the programs of the guide run."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest
import redis

from tests.servers import Server

from .stage import Stage


@pytest.fixture
def stage(
    environment: pytest.MonkeyPatch, redis_server: Server, no_metrics_yet: None
) -> Iterator[Stage]:
    """An empty Redis, an empty directory, and a Telegram that takes everything."""
    with redis.Redis(port=redis_server.port) as client:
        client.flushall()
    yield Stage(environment, redis_server)
    # Programs of the page end with their process; what they leave open must not fail a later test.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()

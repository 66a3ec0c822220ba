"""What every storage promises, on memory, fakeredis, Redis and Valkey."""

from __future__ import annotations

import pytest

from bot_ratelimit import Algorithm, Limit
from bot_ratelimit.storage.base import Charge

from ..benches import Bench

KEY = "bot:ratelimit:42"


@pytest.mark.parametrize("algorithm", Algorithm)
async def test_grants_its_amount_then_refuses(bench: Bench, algorithm: Algorithm) -> None:
    """An empty count grants exactly what the limit can grant at once."""
    charge = Charge(KEY, Limit(3, 60, algorithm))
    waits = [(await bench.storage.hit([charge], timeout=1))[0].wait for _ in range(5)]
    assert [wait == 0 for wait in waits] == [True, True, True, False, False]

"""What an instance reports about itself to operators."""

from __future__ import annotations

import json

from bot_ratelimit import Limiter
from bot_ratelimit.config.live import Live
from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.testing import FlakyStorage
from tests.benches import Bench


async def test_the_first_report_after_an_outage_has_no_problem(bench: Bench) -> None:
    """An instance that reads the document again does not report the outage that is over."""
    storage = FlakyStorage(bench.storage)
    live = Live(Limiter(storage, timeout=5))
    storage.fail()
    await live.refresh()
    assert live.problem == "out of reach"
    storage.heal()
    await live.refresh()
    (report,) = (await storage.documents().reports("bot:ratelimit:instances")).values()
    assert json.loads(report)["problem"] == live.problem == ""


async def test_a_lost_document_was_not_rejected(bench: Bench) -> None:
    """After Redis was emptied, the document is written back, and none counts as rejected."""
    live = Live(Limiter(bench.storage, timeout=5))
    documents, key = bench.storage.documents(), "bot:ratelimit:live"
    document = Overrides(version=3).to_json()
    await documents.swap(key, None, document)
    await live.refresh()
    await documents.clear("bot:ratelimit:", ())
    await live.refresh()
    assert (live.rejected, await documents.read(key)) == (0, document)

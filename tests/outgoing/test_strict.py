"""Three processes with one Redis, against a Telegram over HTTP that counts strictly."""

from __future__ import annotations

import pytest

from tests.servers import Server

from .fleet import run
from .strict import Strict

PROCESSES = 3
CHATS, EACH = 10, 8


@pytest.mark.slow
async def test_three_processes(own_server: Server) -> None:
    """A backlog arrives once and in order; a raid meets one 429; the waits of 429s are kept."""
    async with Strict() as api:
        options = {"chats": CHATS, "each": EACH, "calls": 20}
        told = await run("everything", api.url, own_server.url, PROCESSES, options)
    assert [process["lost"] for process in told] == [0] * PROCESSES
    for chat in range(1, CHATS + 1):
        texts = [seen.text.split() for seen in api.accepted("sendMessage", chat)]
        assert len(texts) == EACH
        for number in range(PROCESSES):
            found = [int(i) for who, i in texts if who == str(number)]
            assert found == [*range(number, EACH, PROCESSES)]
    users = sorted(int(seen.params["user_id"]) for seen in api.accepted("banChatMember"))
    assert users == [*range(1_000, 1_020)]
    assert api.refusals("banChatMember") <= PROCESSES  # which began at the same moment
    assert api.refusals("sendMessage") <= 5
    assert api.impatient == 0

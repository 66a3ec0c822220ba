"""Three processes with one Redis, against a Telegram over HTTP that counts strictly."""

from __future__ import annotations

import pytest

from tests.servers import Server

from .fleet import run
from .strict import Strict

PROCESSES = 3


@pytest.mark.parametrize("limits", [{}, {"per_chat": "2/s burst 10"}], ids=["exact", "too high"])
async def test_a_backlog_of_three_processes(own_server: Server, limits: dict[str, str]) -> None:
    """Each message arrives once and in order, and the waits of 429s are kept."""
    chats, each = 10, 12
    async with Strict() as api:
        options = {"chats": chats, "each": each, "limits": limits}
        told = await run("backlog", api.url, own_server.url, PROCESSES, options)
    assert [process["lost"] for process in told] == [0] * PROCESSES
    for chat in range(1, chats + 1):
        texts = [seen.text.split() for seen in api.accepted("sendMessage", chat)]
        assert len(texts) == each
        for number in range(PROCESSES):
            found = [int(i) for who, i in texts if who == str(number)]
            assert found == [*range(number, each, PROCESSES)]
    assert api.impatient == 0
    assert limits or api.refusals() <= 5


async def test_a_raid_on_three_processes(own_server: Server) -> None:
    """Of 20 bans at once each process meets one 429 at most, and all are carried out."""
    async with Strict() as api:
        told = await run("raid", api.url, own_server.url, PROCESSES, {"calls": 20})
    assert [process["lost"] for process in told] == [0] * PROCESSES
    users = sorted(int(seen.params["user_id"]) for seen in api.accepted("banChatMember"))
    assert users == [*range(1_000, 1_020)]
    assert api.refusals() <= PROCESSES
    assert api.impatient == 0

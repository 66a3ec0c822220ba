"""A journal knows a chat again, in whatever form the id comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bot_ratelimit import ConfigError, Journal, Status

from .virtual import paced, virtual


@virtual
async def test_ids_of_a_file_are_known_again(tmp_path: Path) -> None:
    """The next run skips lines of a file, cells of a table and numbers alike; an empty line or a
    NULL is only its own failure, and the file stays a journal."""
    path = tmp_path / "journal"
    _, bot, outgoing = paced()

    async def run(*chats: Any) -> dict[Any, Status]:
        send = lambda chat: bot.send_message(int(chat), "x")  # noqa: E731 - as users write it
        found = outgoing.broadcast(chats, send, journal=Journal(path))
        return {sent.chat: sent.status async for sent in found}

    sent, failed = Status.SENT, Status.FAILED
    assert await run("1\n", " 2", 3, "\n", None) == {
        "1\n": sent,
        " 2": sent,
        3: sent,
        "\n": failed,
        None: failed,
    }
    assert await run(1, "2", "3\n", " ", "4\r\n") == {" ": failed, "4\r\n": sent}


@virtual
async def test_chats_that_are_no_ids_are_an_error_with_a_journal(tmp_path: Path) -> None:
    """A row of a database has no name that the next run would know; nothing is sent."""
    telegram, bot, outgoing = paced()
    rows: list[Any] = [{"id": 1}, {"id": 2}]
    send = lambda row: bot.send_message(row["id"], "x")  # noqa: E731 - as users write it
    with pytest.raises(ConfigError, match=r"a chat is a dict: the journal needs ids in chats, for"):
        async for _ in outgoing.broadcast(rows, send, journal=Journal(tmp_path / "journal")):
            pass
    assert not telegram.left
    assert len([each async for each in outgoing.broadcast(rows, send)]) == 2  # without one


def test_the_wrong_file_is_told_with_the_price_of_a_new_one(tmp_path: Path) -> None:
    """A new journal would send to everybody, also to chats that have the message."""
    (path := tmp_path / "ids").write_text("1\n2\n")
    with pytest.raises(ConfigError, match=r"or of a new one: then every chat gets the message$"):
        Journal(path)

"""docs/admin-api.md says what the API does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bot_ratelimit import RedisStorage
from bot_ratelimit.admin.web import api

from .web import running_bot, sending

pytestmark = pytest.mark.usefixtures("environment")

PAGE = (Path(__file__).parents[2] / "docs" / "admin-api.md").read_text()
EXAMPLES = re.findall(r"```text\n(.*?)\n```", PAGE, re.DOTALL)


def shape(value: Any) -> Any:
    """Names and types of JSON, of a list those of its first element; anything instead of null."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value[:1]]
    return None if value is None else type(value).__name__


def test_every_request_is_in_the_table() -> None:
    """The table has each route of the API, and no other."""
    listed = set(re.findall(r"^\| `([A-Z]+) (api/\S+)` \|", PAGE, re.MULTILINE))
    routes = {(each.method, each.path[1:].replace("{name:.+}", "{name}")) for each in api.routes()}
    assert listed == routes


async def test_the_examples_are_true(shared: RedisStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent one after the other, each is answered with the status and the fields that are shown."""
    async with (
        running_bot(shared, version=1) as found,
        found.script() as script,
        sending(shared, monkeypatch),
    ):
        await found.send(5)
        for example in sorted(EXAMPLES, key=lambda each: "color" in each):  # that one is above
            asked, _, told = example.partition("\n\n")
            first, _, body = asked.partition("\n")
            status, _, answer = told.partition("\n")
            method, path = first.split()
            reply = await script.ask(method, path, json=json.loads(body) if body else None)
            assert reply.status == int(status), first
            assert shape(reply.content) == shape(json.loads(answer.replace("\n", ""))), first

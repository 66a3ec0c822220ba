"""The examples that pay afterwards leave nobody without an answer, also while Redis is away."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from bot_ratelimit import StorageError

from .pages import block


class Chat:
    """A message whose answers are kept, and a decision that cannot be settled."""

    text = "why"

    def __init__(self) -> None:
        self.said: list[str] = []
        self.settled: list[int | None] = []

    async def answer(self, text: str) -> Chat:
        self.said.append(text)
        return self

    edit_text = answer

    async def charge(self, cost: int | None = None) -> None:
        self.settled.append(cost)
        raise StorageError("out of reach")

    refund = charge


@pytest.mark.parametrize(
    ("page", "heading", "model", "more"),
    [("paying", "Paying afterwards", "model", ()), ("recipes", "An AI bot", "generate", (1,))],
)
async def test_the_user_gets_the_answer_before_the_bill(
    environment: pytest.MonkeyPatch, page: str, heading: str, model: str, more: tuple[int, ...]
) -> None:
    """An answer comes before the charge, and a failure of the model is told and raised."""
    names: dict[str, Any] = {"__name__": "example"}
    exec(block(page, heading).text, names)
    given = {"messages": [Chat()]} if more else {}

    async def answered(_: str) -> Any:
        return ("", *more) if more else ""

    async def failed(_: str) -> Any:
        raise ValueError("model down")

    names[model], chat = answered, Chat()
    with suppress(StorageError):
        await names["ask"](chat, **given, rate_limit=chat)
    assert chat.said[-1] == ""
    assert chat.settled in ([], [1])  # a cost of 0 cannot be charged
    names[model], chat = failed, Chat()
    with pytest.raises(ValueError, match="model down"):
        await names["ask"](chat, **given, rate_limit=chat)
    assert chat.settled == [None]
    assert chat.said[-1] == "That did not work."

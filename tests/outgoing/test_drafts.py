"""Drafts and chat actions: decoration that never holds back a message."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from aiogram import Bot, Dispatcher, methods
from aiogram.exceptions import TelegramBadRequest
from aiogram.methods import SendChatAction
from aiogram.types import Update

from .virtual import Telegram, now, paced, too_many, virtual

pytestmark = pytest.mark.skipif(
    not hasattr(methods, "SendMessageDraft"), reason="SendMessageDraft needs aiogram 3.24"
)
CHAT = 7


def draft(text: str, topic: int | None = None, number: int = 1) -> Any:
    return methods.SendMessageDraft(
        chat_id=CHAT, draft_id=number, text=text, message_thread_id=topic
    )


def shown(telegram: Telegram) -> list[tuple[float, str]]:
    """When which draft arrived."""
    return [(at, m.text) for at, m in telegram.log if "Draft" in m.__api_method__]  # type: ignore[attr-defined] # drafts have a text


async def stream(bot: Bot, frames: int, every: float = 0.1) -> None:
    """What an AI bot does: a longer text for each token, and it waits for each call."""
    for i in range(frames):
        next_token = now() + every
        assert await bot(draft(f"frame {i}")) is True
        await asyncio.sleep(max(0, next_token - now()))


@virtual
async def test_a_stream_is_shown_evenly_and_its_answer_comes_at_once() -> None:
    """Of 100 texts in 10 s at least 2.5 a second are shown. They take no permits of messages: a
    burst of five leaves at once, and a sixth a second later."""
    telegram, bot, _ = paced()
    await stream(bot, 100)
    began = now()
    await asyncio.gather(*(bot.send_message(CHAT, f"answer {i}") for i in range(6)))
    answers = [at - began for at, m in telegram.log if m.__api_method__ == "sendMessage"]
    assert answers == pytest.approx([0, 0, 0, 0, 0, 1], abs=0.15)
    await asyncio.sleep(60)
    times = [at for at, _ in shown(telegram)]
    assert 25 <= len(times) <= 40
    assert max(b - a for a, b in pairwise(times)) <= 0.4
    assert telegram.texts()[-1] == "answer 5"
    for seconds, most in ((5, 20), (30, 40)):
        assert all(sum(at <= each < at + seconds for each in times) <= most for at in times)


@virtual
async def test_the_newest_text_of_each_draft_is_shown_later() -> None:
    """A text that cannot be shown now is shown as soon as it can be, unless a newer one comes.

    Drafts with one id in several topics, and two ids in one topic, are drafts of their own. After
    `close` nothing is shown. The caller of a draft that is sent at once gets Telegram's error.
    """
    telegram, bot, outgoing = paced()
    places = [(11, 1), (12, 1), (13, 1), (13, 2), (None, 1)]
    await asyncio.gather(*(bot(draft(f"{place}", *place)) for place in places))
    assert sorted(text for _, text in shown(telegram)) == sorted(map(str, places))
    telegram, bot, outgoing = paced(drafts="2/s")
    for text in ("a", "b", "c", "d"):
        assert await bot(draft(text)) is True
    assert telegram.texts() == ["a"]
    await asyncio.sleep(3)
    assert telegram.texts() == ["a", "d"]
    telegram.errors = [TelegramBadRequest(draft("x"), "chat not found")]
    with pytest.raises(TelegramBadRequest):
        await bot(draft("x"))
    await bot(draft("e"))
    await outgoing.close()
    await asyncio.sleep(5)
    assert telegram.texts() == ["a", "d"]


@virtual
async def test_a_429_of_a_draft_holds_back_drafts_only() -> None:
    """Messages and actions go on; after the wait the newest text is shown."""
    telegram, bot, _ = paced(errors=[too_many(3)])
    began = now()
    assert await bot(draft("refused")) is True
    await asyncio.gather(*(bot.send_message(CHAT + 1, str(i)) for i in range(3)))
    await bot(SendChatAction(chat_id=CHAT, action="typing"))
    await bot(draft("newest"))
    assert now() - began < 0.3
    assert not shown(telegram)
    await asyncio.sleep(5)
    assert [text for _, text in shown(telegram)] == ["newest"]
    assert shown(telegram)[0][0] - began >= 3


@virtual
async def test_a_message_makes_the_drafts_of_its_topic_obsolete() -> None:
    """What waits in the topic of a message is never shown, not even if its 429 arrives after the
    message; other topics are not affected."""
    telegram, bot, _ = paced(errors=[too_many(3)])
    await bot(draft("refused", topic=11))
    await bot(draft("obsolete", topic=11))
    await bot(draft("still wanted", topic=12))
    began = now()
    await bot.send_message(CHAT, "the answer", message_thread_id=11)
    assert now() - began < 0.1
    await asyncio.sleep(10)
    assert [text for _, text in shown(telegram)] == ["still wanted"]
    telegram, bot, _ = paced(latency=0.2, errors=[too_many(1)])
    showing = asyncio.create_task(bot(draft("obsolete")))
    await asyncio.sleep(0.15)
    await bot.send_message(CHAT, "the answer")
    await showing
    await asyncio.sleep(10)
    assert telegram.texts() == ["the answer"]


@virtual
async def test_a_long_block_drops_drafts() -> None:
    """A text that would be shown after more than `max_wait` is dropped."""
    telegram, bot, _ = paced(errors=[too_many(30)], max_wait={"draft": 5})
    await bot(draft("refused"))
    await bot(draft("too old by then"))
    await asyncio.sleep(60)
    assert not shown(telegram)
    await bot(draft("new"))
    assert [text for _, text in shown(telegram)] == ["new"]


@virtual
async def test_a_stopped_answer_is_not_shown_any_more() -> None:
    """`stopped_message_generation` drops what waits of that draft."""
    telegram, bot, outgoing = paced(drafts="1/s")
    dispatcher = Dispatcher()
    if not hasattr(dispatcher, "stopped_message_generation"):
        pytest.skip("stopped_message_generation needs a newer aiogram")
    outgoing.setup(bot, dispatcher)
    stops = []

    @dispatcher.stopped_message_generation()
    async def on_stop(event: Any) -> None:
        stops.append(event.draft_id)

    for number in (1, 2):
        await bot(draft("shown", number=number))
        await bot(draft(f"waits {number}", number=number))
    stop = {"chat": {"id": CHAT, "type": "private"}, "draft_id": 1}
    update = Update.model_validate(
        {"update_id": 1, "stopped_message_generation": stop}, context={"bot": bot}
    )
    await dispatcher.feed_update(bot, update)
    await asyncio.sleep(5)
    assert stops == [1]
    assert "waits 2" in telegram.texts()
    assert "waits 1" not in telegram.texts()


@virtual
async def test_an_action_that_would_wait_is_dropped() -> None:
    """ "typing" is sent now or dropped, returns True in both cases, and costs no message."""
    telegram, bot, _ = paced(per_chat="1/s burst 2")
    began = now()
    for _ in range(5):
        assert await bot(SendChatAction(chat_id=CHAT, action="typing")) is True
    assert len(telegram.log) == 2
    telegram.errors = [too_many(3)]
    assert await bot(SendChatAction(chat_id=8, action="typing")) is True
    assert await bot(SendChatAction(chat_id=8, action="typing")) is True
    await asyncio.gather(*(bot.send_message(8, "x") for _ in range(2)))
    assert now() - began < 0.5
    assert len(telegram.left) == 5

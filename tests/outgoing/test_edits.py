"""Edits, drafts and chat actions: only the newest is sent, and decoration holds back no message."""

from __future__ import annotations

import asyncio
import random
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from typing import Any
from unittest.mock import AsyncMock

import pytest
from aiogram import Dispatcher, methods
from aiogram.exceptions import ClientDecodeError, TelegramBadRequest
from aiogram.methods import EditMessageReplyMarkup, EditMessageText, SendChatAction, SendMessage
from aiogram.types import Update

from bot_ratelimit import NotSentError, waiting_up_to, without_waiting
from bot_ratelimit.outgoing.drafts import DraftStream

from .virtual import Telegram, now, paced, too_many, virtual


def edit(text: str, message: int = 1, chat: int = 7) -> EditMessageText:
    return EditMessageText(chat_id=chat, message_id=message, text=text)


@virtual
async def test_a_stream_of_edits_ends_with_its_last_text() -> None:
    """50 edits in 5 seconds: as many requests as the budget allows, and the last text is shown.

    All callers get the result of the edit that was sent. With `merge_edits=False` every edit is.
    """
    telegram, bot, _ = paced(per_chat="1/s burst 1")
    tasks = []
    for i in range(50):
        tasks.append(asyncio.create_task(bot(edit(str(i)))))
        await asyncio.sleep(0.1)
    results = await asyncio.gather(*tasks)
    assert 6 <= len({id(result) for result in results}) == len(telegram.log) <= 7
    assert telegram.texts()[-1] == "49"
    assert telegram.log[-1][0] - 1_000 < 6.2
    telegram.errors = [TelegramBadRequest(edit("x"), "message is not modified")]
    outcomes = await asyncio.gather(*(bot(edit("x")) for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in outcomes] == [TelegramBadRequest] * 3
    telegram, bot, _ = paced(merge_edits=False)
    await asyncio.gather(*(bot(edit(str(i))) for i in range(8)))
    assert telegram.texts() == [str(i) for i in range(8)]


@virtual
async def test_only_the_same_edit_of_the_same_message_is_replaced() -> None:
    """Edits of other messages, chats and kinds keep their places and their order.

    Ephemeral messages for three users with one id are three messages.
    """
    telegram, bot, _ = paced(per_chat="1/s burst 1")
    await bot.send_message(7, "x")
    markup = EditMessageReplyMarkup(chat_id=7, message_id=1)
    edits: list[Any] = [edit("a"), edit("b", 2), edit("c"), markup, edit("d"), edit("e")]
    await asyncio.gather(*map(bot, edits))
    assert telegram.texts() == ["x", "c", "b", "editMessageReplyMarkup", "e"]
    if hasattr(methods, "EditEphemeralMessageText"):  # of a new aiogram
        of = {"chat_id": 7, "ephemeral_message_id": 1}
        edits = [
            methods.EditEphemeralMessageText(**of, receiver_user_id=user, text=f"{user} {i}")
            for i in range(2)
            for user in (1, 2, 3)
        ]
        await asyncio.gather(*map(bot, edits))
        assert telegram.texts()[5:] == ["1 1", "2 1", "3 1"]


@virtual
async def test_scores_of_an_inline_game_do_not_replace_each_other() -> None:
    """Each player's score is sent, although they are set in one message."""
    telegram, bot, _ = paced()
    scores = (bot.set_game_score(user, 100, inline_message_id="a") for user in (1, 2, 3))
    await asyncio.gather(*scores)
    assert [m.user_id for _, m in telegram.log] == [1, 2, 3]  # type: ignore[attr-defined] # all are scores


@virtual
async def test_after_a_429_the_newest_edit_is_sent() -> None:
    """It is sent in place of the refused one, has all its retries, and its own `waiting_up_to`."""
    telegram, bot, _ = paced(errors=[too_many(1), too_many(1), too_many(37)], retries=2)
    old = asyncio.create_task(bot(edit("old")))
    await asyncio.sleep(1.8)
    with waiting_up_to(60):
        new = asyncio.create_task(bot(edit("new")))
    assert await new is await old
    assert telegram.texts() == ["new"]
    assert 39 <= now() - 1_000 < 40.5


@virtual
async def test_an_impatient_edit_does_not_end_a_patient_one() -> None:
    """What replaces it ends with its own patience, and then the patient edit is sent after all."""
    for patience in (60, None):
        telegram, bot, _ = paced(per_chat="1/10s")
        await bot.send_message(7, "x")
        with waiting_up_to(patience) if patience else nullcontext():
            final = asyncio.create_task(bot(edit("final")))
        with waiting_up_to(0.3):
            newer = asyncio.create_task(bot(edit("decoration")))
        await final
        with pytest.raises(NotSentError):
            await newer
        assert telegram.texts() == ["x", "final"]


@virtual
async def test_an_edit_survives_the_cancellation_of_its_caller() -> None:
    """If the caller that runs an edit is cancelled, another continues with the newest text."""
    telegram, bot, _ = paced(per_chat="1/s burst 1")
    await bot.send_message(7, "x")
    tasks = [asyncio.create_task(bot(edit(str(i)))) for i in range(4)]
    await asyncio.sleep(0.2)
    tasks[0].cancel()  # the one that waits for the place
    await asyncio.sleep(0.2)
    tasks[3].cancel()  # the newest
    await asyncio.wait(tasks)
    assert [task.cancelled() for task in tasks] == [True, False, False, True]
    assert telegram.texts() == ["x", "2"]
    await bot.send_message(7, "y")
    assert telegram.times() == pytest.approx([0, 1, 2], abs=0.1)


@virtual
async def test_an_edit_after_one_that_was_given_up_is_sent() -> None:
    """A caller that gives an edit up can edit the message again at once, for example to say so."""
    telegram, bot, _ = paced(per_chat="1/s burst 1")
    await bot.send_message(7, "x")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await bot(edit("half"))
    await bot(edit("final"))
    assert telegram.texts() == ["x", "final"]


@virtual
async def test_a_cancellation_at_the_moment_of_the_answer() -> None:
    """A caller that is cancelled just before it gets the result is cancelled."""

    class Impatient(Telegram):
        async def make_request(self, *args: Any, **options: Any) -> Any:
            result = await super().make_request(*args, **options)
            if len(self.log) == 2:
                asyncio.get_running_loop().call_soon(edits[1].cancel)
            return result

    _, bot, _ = paced(Impatient(), per_chat="1/10s")
    await bot.send_message(7, "before")
    edits = [asyncio.create_task(bot(edit(f"{i}"))) for i in range(3)]
    await asyncio.wait(edits)
    assert [each.cancelled() for each in edits] == [False, True, False]
    assert edits[0].result() is edits[2].result()


@virtual
async def test_random_cancellations_leave_nothing_behind() -> None:
    """However callers come and go, no request is lost or sent twice, and no chat is stuck."""
    random.seed(7)
    telegram, bot, _ = paced(
        latency=lambda: random.choice([0.01, 0.2, 2.0]), per_chat="5/s burst 2", retries=99
    )
    tasks = []
    for i in range(150):
        method = edit(f"{i}", i % 2) if i % 3 else SendMessage(chat_id=7, text=f"{i}m")
        tasks.append(asyncio.create_task(bot(method)))
        if i % 2:
            asyncio.get_running_loop().call_later(random.uniform(0, 8), tasks[-1].cancel)
        if not i % 10:
            telegram.errors.append(too_many(1))
            await asyncio.sleep(random.uniform(0, 1))
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(each).__name__ for each in outcomes} == {"Message", "CancelledError"}
    numbers = [int(text[:-1]) for text in telegram.texts() if text[-1] == "m"]
    assert numbers == sorted(set(numbers))
    assert {i for i in range(0, 150, 3) if not isinstance(outcomes[i], BaseException)} <= {*numbers}
    await asyncio.sleep(20)
    telegram.latency = lambda: 0.01
    began = now()
    await bot.send_message(7, "x")
    assert now() - began < 0.1


CHAT = 7


def draft(text: str, topic: int | None = None, number: int = 1) -> Any:
    if not hasattr(methods, "SendMessageDraft"):
        pytest.skip("SendMessageDraft needs aiogram 3.24")
    return methods.SendMessageDraft(
        chat_id=CHAT, draft_id=number, text=text, message_thread_id=topic
    )


def shown(telegram: Telegram) -> list[tuple[float, str]]:
    """When which draft arrived."""
    return [(at, m.text) for at, m in telegram.log if "Draft" in m.__api_method__]  # type: ignore[attr-defined] # drafts have a text


@virtual
async def test_a_stream_is_shown_evenly_and_its_answer_comes_at_once() -> None:
    """Of 600 texts in 60 s, as of an AI bot that waits for each call, two a second are shown for
    ten seconds, and then one a second, as Telegram accepts it. They take no permits of messages: a
    burst of five leaves at once, a sixth later."""
    telegram, bot, _ = paced()
    for i in range(600):
        next_token = now() + 0.1
        assert await bot(draft(f"frame {i}")) is True
        await asyncio.sleep(max(0, next_token - now()))
    began = now()
    await asyncio.gather(*(bot.send_message(CHAT, f"answer {i}") for i in range(6)))
    answers = [at - began for at, m in telegram.log if m.__api_method__ == "sendMessage"]
    assert answers == pytest.approx([0, 0, 0, 0, 0, 1], abs=0.15)
    await asyncio.sleep(60)
    times = [at for at, _ in shown(telegram)]
    assert 68 <= len(times) <= 71
    assert max(b - a for a, b in pairwise(times[:18])) <= 0.7
    assert max(b - a for a, b in pairwise(times)) <= 1.1
    assert telegram.texts()[-1] == "answer 5"
    for seconds, most in ((5, 20), (30, 40)):
        assert all(sum(at <= each < at + seconds for each in times) <= most for at in times)


@virtual
async def test_the_newest_text_of_each_draft_is_shown_later() -> None:
    """A text that cannot be shown now is shown as soon as it can be, unless a newer one comes,
    however long the budget takes.

    Drafts with one id in several topics, and two ids in one topic, are drafts of their own. After
    `close` nothing is shown. The caller of a draft that is sent at once gets Telegram's error.
    """
    telegram, bot, outgoing = paced()
    places = [(11, 1), (12, 1), (13, 1), (13, 2), (None, 1)]
    await asyncio.gather(*(bot(draft(f"{place}", *place)) for place in places))
    assert sorted(text for _, text in shown(telegram)) == sorted(map(str, places))
    telegram, bot, outgoing = paced(drafts="1/20s")
    for text in ("a", "b", "c", "d"):
        assert await bot(draft(text)) is True
    await asyncio.sleep(19)
    assert telegram.texts() == ["a"]
    await asyncio.sleep(21)
    assert telegram.texts() == ["a", "d"]
    telegram.errors = [TelegramBadRequest(draft("x"), "chat not found")]
    with pytest.raises(TelegramBadRequest):
        await bot(draft("x"))
    await bot(draft("e"))
    await outgoing.close()
    await asyncio.sleep(50)
    assert telegram.texts() == ["a", "d"]


@virtual
async def test_drafts_without_a_limit_are_all_shown() -> None:
    """`drafts=None` shows each text at once; only what comes while one is sent is replaced."""
    telegram, bot, _ = paced(drafts=None)
    for text in ("a", "b", "c"):
        await bot(draft(text))
    await asyncio.gather(*(bot(draft(text)) for text in ("d", "e", "f")))
    await asyncio.sleep(1)
    assert telegram.texts() == ["a", "b", "c", "d", "f"]


@virtual
async def test_a_bug_does_not_keep_the_loop_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error before a draft is sent reaches its caller, and is not met again and again."""
    telegram, bot, outgoing = paced()
    with monkeypatch.context() as broken:
        broken.setattr(outgoing._permits, "take", AsyncMock(side_effect=ValueError("a bug")))
        with pytest.raises(ValueError, match="a bug"):
            await bot(draft("lost"))
        await asyncio.sleep(1)
    telegram.errors = [None, ClientDecodeError("an error page", ValueError(), "<html>")]
    telegram.latency = lambda: 0.2
    # The second is kept, and the third comes while it is on its way.
    for text, pause in (("shown", 0.1), ("at a proxy", 0.3), ("shown, too", 5)):
        await bot(draft(text))
        await asyncio.sleep(pause)
    assert telegram.texts()[-1] == "shown, too"


@virtual
async def test_drafts_that_are_done_are_forgotten() -> None:
    """Also if the bot has only one chat, in which each answer is a new draft."""
    _, bot, outgoing = paced()
    for number in range(1, 20):
        await bot(draft("x", number=number))
        await asyncio.sleep(10)
    streams = [each for each in outgoing._queues._paces.values() if isinstance(each, DraftStream)]
    assert [len(each.drafts) for each in streams] == [1]


@virtual
async def test_a_429_of_a_draft_holds_back_drafts_only() -> None:
    """Messages and actions go on; after the wait the newest text is shown. One that would be shown
    after more than `max_wait` is dropped."""
    telegram, bot, _ = paced(errors=[too_many(3)], max_wait={"draft": 5})
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
    telegram.errors = [too_many(30)]
    await bot(draft("refused"))
    await bot(draft("too old by then"))
    await asyncio.sleep(60)
    await bot(draft("new"))
    assert [text for _, text in shown(telegram)] == ["newest", "new"]


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
async def test_a_draft_on_its_way_arrives_before_the_message() -> None:
    """The message of its topic waits for it, but for a second at most, and only one does; other
    topics do not wait, and nothing does that must not wait."""
    telegram, bot, _ = paced()
    cases = ((11, 11, 0.6, 0.52), (11, 12, 0.6, 0.02), (13, 13, 9, 1.02))
    for topic, message, takes, delay in cases:
        telegram.latency = partial(float, takes)
        showing = asyncio.create_task(bot(draft("half", topic)))
        await asyncio.sleep(0.1)
        telegram.latency = lambda: 0.02
        began = now()
        await bot.send_message(CHAT, "the answer", message_thread_id=message)
        assert now() - began == pytest.approx(delay, abs=0.04)
        await bot.send_message(CHAT, "and more", message_thread_id=message)
        assert now() - began == pytest.approx(delay + 0.02, abs=0.04)
        await showing
    telegram.latency = partial(float, 5)
    showing = asyncio.create_task(bot(draft("half", 14)))
    await asyncio.sleep(0.1)
    telegram.latency, began = (lambda: 0.02), now()
    with without_waiting():
        await bot.send_message(CHAT, "now", message_thread_id=14)
    assert now() - began < 0.1
    await showing
    assert telegram.texts()[:2] == ["half", "the answer"]


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

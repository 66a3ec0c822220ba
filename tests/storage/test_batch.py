"""Batcher: what leaves when, and with whom."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import pytest

from bot_ratelimit import StorageError
from bot_ratelimit.storage.batch import Batcher

Answer = str | Exception


class Wire:
    """Takes batches of numbers, and answers the oldest one when told to."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []
        self.answers: dict[int, Exception] = {}
        self.breaks_on: list[int] = []
        self.deaf_on: list[int] = []
        self._replies = asyncio.Semaphore(0)

    async def send(self, items: Sequence[int]) -> list[Answer]:
        self.sent.append(list(items))
        if items == self.deaf_on:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        await self._replies.acquire()
        if items == self.breaks_on:
            raise ValueError("broken")
        return [self.answers.get(item, f"answer {item}") for item in items]

    async def reply(self) -> None:
        self._replies.release()
        await settled()


async def settled() -> None:
    """Let every task run until it waits for something."""
    for _ in range(10):
        await asyncio.sleep(0)


class Callers:
    """A batcher on a wire, and those who wait for its answers."""

    def __init__(self, *, max_weight: int = 100, max_waiting: int = 100) -> None:
        self.wire = Wire()
        self.batcher: Batcher[int, str] = Batcher(
            self.wire.send, weigh=abs, max_weight=max_weight, max_waiting=max_waiting
        )

    async def ask(self, *items: int, timeout: float = 5) -> list[asyncio.Task[str]]:
        tasks = [asyncio.create_task(self.batcher.submit(item, timeout)) for item in items]
        await settled()
        return tasks


async def test_leaves_at_once_when_nothing_is_under_way() -> None:
    """An item that meets an idle batcher is sent alone, and nothing is started for it."""
    callers = Callers()
    (one,) = await callers.ask(1)
    assert callers.wire.sent == [[1]]
    assert asyncio.all_tasks() == {asyncio.current_task(), one}
    await callers.wire.reply()
    assert one.result() == "answer 1"


async def test_what_arrives_meanwhile_leaves_together_in_order() -> None:
    """One batch is under way at a time; the next takes along all who asked, first come first."""
    callers = Callers()
    tasks = await callers.ask(1) + await callers.ask(4, 3) + await callers.ask(2)
    assert callers.wire.sent == [[1]]
    await callers.wire.reply()
    assert callers.wire.sent == [[1], [4, 3, 2]]
    await callers.wire.reply()
    assert await asyncio.gather(*tasks) == ["answer 1", "answer 4", "answer 3", "answer 2"]
    await settled()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await callers.ask(5)
    assert callers.wire.sent[2:] == [[5]]


async def test_a_batch_is_bounded_by_its_weight() -> None:
    """No batch of several holds the server for long; what is too heavy travels alone."""
    callers = Callers(max_weight=5)
    tasks = await callers.ask(1, 2, 3, 1, 9, 4)
    for _ in range(5):
        await callers.wire.reply()
    assert callers.wire.sent == [[1], [2, 3], [1], [9], [4]]
    assert all(task.done() for task in tasks)


async def test_the_queue_is_bounded() -> None:
    """One more than may wait is refused at once, and harms nobody who waits."""
    callers = Callers(max_waiting=2)
    *waiting, refused = await callers.ask(1, 2, 3, 4)
    with pytest.raises(StorageError, match="2 decisions are waiting"):
        await refused
    await callers.wire.reply()
    await callers.wire.reply()
    assert await asyncio.gather(*waiting) == ["answer 1", "answer 2", "answer 3"]


async def test_one_failing_answer_is_its_askers_alone() -> None:
    """An answer that is an exception reaches the one who asked; its neighbours get theirs."""
    callers = Callers()
    callers.wire.answers = {1: ValueError("first"), 3: ValueError("third")}
    tasks = await callers.ask(1, 2, 3, 4)
    await callers.wire.reply()
    await callers.wire.reply()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(each) for each in found] == ["first", "answer 2", "third", "answer 4"]


async def test_a_batch_that_fails_does_not_stop_the_next() -> None:
    """When sending fails, all of that batch hear of it, and the next one is sent."""
    callers = Callers()
    callers.wire.breaks_on = [2, 3]
    tasks = await callers.ask(1, 2, 3)
    await callers.wire.reply()
    later = await callers.ask(4)
    await callers.wire.reply()
    await callers.wire.reply()
    found = await asyncio.gather(*tasks, *later, return_exceptions=True)
    assert [str(each) for each in found] == ["answer 1", "broken", "broken", "answer 4"]


async def test_who_gives_up_while_waiting_is_not_sent() -> None:
    """A caller cancelled before his batch left is charged nothing."""
    callers = Callers()
    _, two, three = await callers.ask(1, 2, 3)
    two.cancel()
    await callers.wire.reply()
    assert callers.wire.sent == [[1], [3]]
    await callers.wire.reply()
    assert await three == "answer 3"


@pytest.mark.parametrize("gone", [0, 1])
async def test_who_gives_up_on_the_way_takes_nobody_along(gone: int) -> None:
    """A caller cancelled while his batch is under way costs the others neither answer nor turn."""
    callers = Callers()
    tasks = await callers.ask(1, 2, 3)
    if gone:
        await callers.wire.reply()
    tasks.pop(gone).cancel()
    await settled()
    later = await callers.ask(4)
    for _ in range(3):
        await callers.wire.reply()
    assert len(await asyncio.gather(*tasks[gone:], *later)) == 3 - gone


async def test_a_deadline_counts_from_when_it_was_asked() -> None:
    """However long the batch before takes, everybody hears in his own time."""
    callers, loop = Callers(), asyncio.get_running_loop()
    waited = []

    async def ask(item: int, timeout: float) -> None:
        asked = loop.time()
        with pytest.raises(StorageError, match=r"in time|within"):
            await callers.batcher.submit(item, timeout)
        waited.append((item, loop.time() - asked))

    await asyncio.gather(ask(1, 0.06), ask(2, 0.03), ask(3, 0.09))
    assert [item for item, _ in waited] == [2, 1, 3]
    for (_, seconds), timeout in zip(waited, (0.03, 0.06, 0.09), strict=True):
        assert timeout <= seconds + 0.001 < timeout + 0.2
    assert callers.wire.sent == [[1], [3]]


async def test_a_batch_without_an_answer_is_given_up() -> None:
    """When a batch's last deadline has passed, the next one may try."""
    callers = Callers()
    lost = await callers.ask(1, 2, timeout=0.02)
    with pytest.raises(StorageError):
        await lost[1]
    later = await callers.ask(3)
    assert callers.wire.sent == [[1], [3]]
    await callers.wire.reply()
    await callers.wire.reply()
    assert await later[0] == "answer 3"
    assert isinstance(lost[0].exception(), StorageError)


@pytest.mark.parametrize("deaf", [[1], [2, 3]], ids=["alone", "batch"])
async def test_a_deadline_holds_although_sending_does_not_hear_of_it(deaf: list[int]) -> None:
    """A send that did not hear that it is cancelled is told again, and the next one leaves soon.

    redis-py sends by `asyncio.wait_for`, which in Python 3.11 may swallow a cancellation; then
    it would go on connecting to a server that hangs, for a minute.
    """
    callers = Callers()
    callers.wire.deaf_on = deaf
    tasks = await callers.ask(1, 2, 3, timeout=0.05)
    if deaf != [1]:
        await callers.wire.reply()
    async with asyncio.timeout(1):
        found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(found[item - 1]) for item in deaf] == [StorageError] * len(deaf)
    (later,) = await callers.ask(4)
    await asyncio.sleep(0.05)
    assert callers.wire.sent[-1] == [4]
    await callers.wire.reply()
    assert later.result() == "answer 4"


async def test_close_answers_everybody_who_waits() -> None:
    """After close nobody waits for his deadline, and nothing more is sent."""
    callers = Callers()
    tasks = await callers.ask(1, 2, 3)
    await callers.wire.reply()
    tasks += await callers.ask(4)
    await callers.batcher.close()
    async with asyncio.timeout(1):
        found = await asyncio.gather(*tasks, return_exceptions=True)
    assert found[0] == "answer 1"
    assert [type(each) for each in found[1:]] == [StorageError] * 3
    assert callers.wire.sent == [[1], [2, 3]]
    await callers.batcher.close()


async def test_close_right_after_an_answer_answers_too() -> None:
    """A batch that was about to leave is answered like one that waits."""
    callers = Callers()
    tasks = await callers.ask(1, 2)
    callers.wire._replies.release()
    await tasks[0]
    async with asyncio.timeout(1):
        await callers.batcher.close()
        with pytest.raises(StorageError, match="closed"):
            await tasks[1]


def test_works_in_one_event_loop_after_another() -> None:
    """What an earlier asyncio.run() left under way holds up nothing in the next."""
    callers = Callers()

    async def leave() -> None:
        await callers.ask(1, 2)

    async def work() -> str:
        callers.wire._replies = asyncio.Semaphore(1)
        return await callers.batcher.submit(3, 1)

    asyncio.run(leave())
    assert asyncio.run(work()) == "answer 3"


async def test_close_before_the_sender_began_leaves_it_usable() -> None:
    """A sender that is cancelled before its first step does not block those who ask later."""
    callers = Callers()
    tasks = await callers.ask(1, 2)
    tasks[0].cancel()
    await asyncio.sleep(0)  # the first one left, and a sender for the second is due
    await callers.batcher.close()
    await asyncio.gather(*tasks, return_exceptions=True)
    (later,) = await callers.ask(3)
    await callers.wire.reply()
    assert later.done()
    assert later.result() == "answer 3"

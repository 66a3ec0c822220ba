"""Batcher: what leaves when, and with whom."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest

from bot_ratelimit import StorageError
from bot_ratelimit.storage.batch import SPLIT, Batcher


class Server:
    """Takes batches of numbers, and answers the oldest one when told to."""

    depth = 2

    def __init__(self) -> None:
        self.sent: list[list[int]] = []
        self.lines: list[Line] = []
        self.answers: dict[int, Exception] = {}
        self.breaks_on: list[int] = []
        self.deaf_on: list[int] = []
        self.not_run: list[list[int]] = []
        self.replies = asyncio.Semaphore(0)

    async def connect(self) -> Line:
        self.lines.append(Line(self))
        return self.lines[-1]

    def weigh(self, item: int) -> int:
        return item

    def pack(self, items: Sequence[int]) -> list[int]:
        return list(items)

    async def unpack(
        self, line: object, items: Sequence[int], replies: Sequence[Any]
    ) -> list[str | Exception] | None:
        assert list(items) == list(replies)
        if list(items) in self.not_run:
            self.not_run.remove(list(items))
            return None
        return [self.answers.get(item, f"answer {item}") for item in items]

    def explain(self, error: Exception) -> Exception:
        return StorageError(f"explained: {error}")

    async def reply(self) -> None:
        self.replies.release()
        await settled()


class Line:
    """A connection to the server, whose replies are the commands."""

    moved = False
    spent = False

    def __init__(self, server: Server) -> None:
        self._server = server
        self._under_way: list[int] = []
        self.released = False

    async def send(self, commands: Sequence[Any]) -> None:
        assert not self.released
        self._server.sent.append(list(commands))
        self._under_way.extend(commands)

    async def receive(self, count: int) -> list[Any]:
        replies, self._under_way = self._under_way[:count], self._under_way[count:]
        if replies == self._server.deaf_on:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        await self._server.replies.acquire()
        if replies == self._server.breaks_on:
            raise ValueError("broken")
        return replies

    async def release(self) -> None:
        self.released = True


async def settled() -> None:
    """Let every task run until it waits for something."""
    for _ in range(10):
        await asyncio.sleep(0)


class Callers:
    """A batcher with a server, and those who wait for its answers."""

    def __init__(self, *, max_weight: int = 100, max_waiting: int = 100) -> None:
        self.server = Server()
        self.batcher: Batcher[int, str] = Batcher(
            self.server, max_weight=max_weight, max_waiting=max_waiting
        )

    async def ask(self, *items: int, timeout: float = 5) -> list[asyncio.Task[str]]:
        tasks = [asyncio.create_task(self.batcher.submit(item, timeout)) for item in items]
        await settled()
        return tasks


async def test_leaves_at_once_when_nothing_is_under_way() -> None:
    """An item that meets an idle batcher is sent alone, and nothing is started for it."""
    callers = Callers()
    (one,) = await callers.ask(1)
    assert callers.server.sent == [[1]]
    assert asyncio.all_tasks() == {asyncio.current_task(), one}
    await callers.server.reply()
    assert one.result() == "answer 1"


async def test_what_arrives_meanwhile_leaves_together_in_order() -> None:
    """One batch is under way at a time; the next takes along all who asked, first come first."""
    callers = Callers()
    tasks = await callers.ask(1) + await callers.ask(4, 3) + await callers.ask(2)
    assert callers.server.sent == [[1]]
    await callers.server.reply()
    assert callers.server.sent == [[1], [4, 3, 2]]
    await callers.server.reply()
    assert await asyncio.gather(*tasks) == ["answer 1", "answer 4", "answer 3", "answer 2"]
    await settled()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await callers.ask(5)
    assert callers.server.sent[2:] == [[5]]


async def test_a_batch_is_bounded_by_its_weight() -> None:
    """No batch of several holds the server for long; what is too heavy travels alone."""
    callers = Callers(max_weight=5)
    tasks = await callers.ask(1, 2, 3, 1, 9, 4)
    for _ in range(5):
        await callers.server.reply()
    assert callers.server.sent == [[1], [2, 3], [1], [9], [4]]
    assert all(task.done() for task in tasks)


async def test_the_queue_is_bounded() -> None:
    """One more than may wait is refused at once, and harms nobody who waits."""
    callers = Callers(max_waiting=2)
    *waiting, refused = await callers.ask(1, 2, 3, 4)
    with pytest.raises(StorageError, match="2 decisions are waiting"):
        await refused
    await callers.server.reply()
    await callers.server.reply()
    assert await asyncio.gather(*waiting) == ["answer 1", "answer 2", "answer 3"]


async def test_one_failing_answer_is_its_askers_alone() -> None:
    """An answer that is an exception reaches the one who asked; its neighbours get theirs."""
    callers = Callers()
    callers.server.answers = {1: ValueError("first"), 3: ValueError("third")}
    tasks = await callers.ask(1, 2, 3, 4)
    await callers.server.reply()
    await callers.server.reply()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(each) for each in found] == ["first", "answer 2", "third", "answer 4"]


async def test_a_batch_that_fails_does_not_stop_the_next() -> None:
    """When sending fails, all of that batch hear of it, and the next one is sent."""
    callers = Callers()
    callers.server.breaks_on = [2, 3]
    tasks = await callers.ask(1, 2, 3)
    await callers.server.reply()
    later = await callers.ask(4)
    await callers.server.reply()
    await callers.server.reply()
    found = await asyncio.gather(*tasks, *later, return_exceptions=True)
    assert [str(each) for each in found] == [
        "answer 1",
        "explained: broken",
        "explained: broken",
        "answer 4",
    ]


async def test_who_gives_up_while_waiting_is_not_sent() -> None:
    """A caller cancelled before his batch left is charged nothing."""
    callers = Callers()
    _, two, three = await callers.ask(1, 2, 3)
    two.cancel()
    await callers.server.reply()
    assert callers.server.sent == [[1], [3]]
    await callers.server.reply()
    assert await three == "answer 3"


@pytest.mark.parametrize("gone", [0, 1])
async def test_who_gives_up_on_the_way_takes_nobody_along(gone: int) -> None:
    """A caller cancelled while his batch is under way costs the others neither answer nor turn."""
    callers = Callers()
    tasks = await callers.ask(1, 2, 3)
    if gone:
        await callers.server.reply()
    tasks.pop(gone).cancel()
    await settled()
    later = await callers.ask(4)
    for _ in range(3):
        await callers.server.reply()
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
    assert callers.server.sent == [[1], [3]]


async def test_a_batch_without_an_answer_is_given_up() -> None:
    """When a batch's last deadline has passed, the next one may try."""
    callers = Callers()
    lost = await callers.ask(1, 2, timeout=0.02)
    with pytest.raises(StorageError):
        await lost[1]
    later = await callers.ask(3)
    assert callers.server.sent == [[1], [3]]
    await callers.server.reply()
    await callers.server.reply()
    assert await later[0] == "answer 3"
    assert isinstance(lost[0].exception(), StorageError)


@pytest.mark.parametrize("deaf", [[1], [2, 3]], ids=["alone", "batch"])
async def test_a_deadline_holds_although_sending_does_not_hear_of_it(deaf: list[int]) -> None:
    """A send that did not hear that it is cancelled is told again, and the next one leaves soon.

    redis-py sends by `asyncio.wait_for`, which in Python 3.11 may swallow a cancellation; then
    it would go on connecting to a server that hangs, for a minute.
    """
    callers = Callers()
    callers.server.deaf_on = deaf
    tasks = await callers.ask(1, 2, 3, timeout=0.05)
    if deaf != [1]:
        await callers.server.reply()
    async with asyncio.timeout(1):
        found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(found[item - 1]) for item in deaf] == [StorageError] * len(deaf)
    (later,) = await callers.ask(4)
    await asyncio.sleep(0.05)
    assert callers.server.sent[-1] == [4]
    await callers.server.reply()
    assert later.result() == "answer 4"


async def test_close_answers_everybody_who_waits() -> None:
    """After close nobody waits for his deadline, and nothing more is sent."""
    callers = Callers()
    tasks = await callers.ask(1, 2, 3)
    await callers.server.reply()
    tasks += await callers.ask(4)
    await callers.batcher.close()
    async with asyncio.timeout(1):
        found = await asyncio.gather(*tasks, return_exceptions=True)
    assert found[0] == "answer 1"
    assert [type(each) for each in found[1:]] == [StorageError] * 3
    assert callers.server.sent == [[1], [2, 3]]
    await callers.batcher.close()


async def test_close_right_after_an_answer_answers_too() -> None:
    """A batch that was about to leave is answered like one that waits."""
    callers = Callers()
    tasks = await callers.ask(1, 2)
    callers.server.replies.release()
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
        callers.server.replies = asyncio.Semaphore(1)
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
    await callers.server.reply()
    assert later.done()
    assert later.result() == "answer 3"


async def test_a_crowd_leaves_in_halves() -> None:
    """Both are under way before the first is answered, on one connection; a few are not parted."""
    callers = Callers(max_weight=10_000)
    tasks = await callers.ask(0, *range(1, SPLIT))
    await callers.server.reply()
    assert callers.server.sent == [[0], [*range(1, SPLIT)]]
    crowd = await callers.ask(*range(100, 141))
    await callers.server.reply()
    assert callers.server.sent[2:] == [[*range(100, 120)], [*range(120, 141)]]
    assert all(task.done() for task in tasks)
    await callers.server.reply()
    assert [task.done() for task in crowd] == [True] * 20 + [False] * 21
    await callers.server.reply()
    assert await asyncio.gather(*crowd) == [f"answer {item}" for item in range(100, 141)]
    assert len(callers.server.lines) == 2  # the first one's, and that of all who followed
    assert all(line.released for line in callers.server.lines)


async def test_who_asks_again_is_sent_while_the_other_half_is_under_way() -> None:
    """The server always has a batch to decide while answers are dealt with here."""
    callers = Callers(max_weight=10_000)

    async def ask_twice(item: int) -> str:
        await callers.batcher.submit(item, 5)
        return await callers.batcher.submit(item + 100, 5)

    tasks = [asyncio.create_task(ask_twice(item)) for item in range(41)]
    await settled()
    await callers.server.reply()
    assert callers.server.sent == [[0], [*range(1, 21)], [*range(21, 41), 100]]
    await callers.server.reply()
    assert callers.server.sent[3:] == [[*range(101, 121)]]
    for _ in range(3):
        await callers.server.reply()
    assert await asyncio.gather(*tasks) == [f"answer {item + 100}" for item in range(41)]


async def test_where_one_batch_at_a_time_is_possible_it_is_whole() -> None:
    """A server that takes them one by one gets as much as it may at once."""
    callers = Callers(max_weight=10_000)
    callers.server.depth = 1
    await callers.ask(0, *range(1, 41))
    await callers.server.reply()
    assert callers.server.sent == [[0], [*range(1, 41)]]
    await callers.server.reply()


async def test_what_was_not_run_is_sent_again_first() -> None:
    """A batch that the server did not decide goes before those who came later."""
    callers = Callers()
    callers.server.not_run = [[1], [2, 3]]
    tasks = await callers.ask(1, 2, 3)
    await callers.server.reply()
    assert callers.server.sent == [[1], [1]]
    await callers.server.reply()
    tasks += await callers.ask(4)
    await callers.server.reply()
    assert callers.server.sent[2:] == [[2, 3], [2, 3, 4]]
    await callers.server.reply()
    assert await asyncio.gather(*tasks) == [f"answer {item}" for item in (1, 2, 3, 4)]


async def test_a_broken_line_fails_all_that_is_under_way_on_it() -> None:
    """Whoever was sent on it hears of it; whoever still waits goes by a new one."""
    callers = Callers(max_weight=10_000)
    callers.server.breaks_on = [*range(1, 21)]
    tasks = await callers.ask(*range(41))
    await callers.server.reply()
    later = await callers.ask(50, 51)
    await callers.server.reply()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(each) for each in found] == ["answer 0"] + ["explained: broken"] * 40
    assert callers.server.sent[3:] == [[50, 51]]
    await callers.server.reply()
    assert await asyncio.gather(*later) == ["answer 50", "answer 51"]
    assert len(callers.server.lines) == 3
    assert all(line.released for line in callers.server.lines)


async def test_nothing_more_is_sent_on_a_line_that_is_spent() -> None:
    """Those who wait go by another one, and what is under way is still answered."""
    callers = Callers()
    tasks = await callers.ask(1, 2)
    await callers.server.reply()
    callers.server.lines[-1].spent = True
    tasks += await callers.ask(3)
    await callers.server.reply()
    assert callers.server.sent == [[1], [2], [3]]
    assert [line.released for line in callers.server.lines] == [True, True, False]
    await callers.server.reply()
    assert await asyncio.gather(*tasks) == ["answer 1", "answer 2", "answer 3"]


async def test_a_sender_that_never_began_does_not_block_those_who_ask_later() -> None:
    """Whoever cancels it, as when a close is itself given up, or all tasks of the loop end."""
    callers = Callers()
    tasks = await callers.ask(1, 2)
    tasks[0].cancel()
    await asyncio.sleep(0)  # the first one left, and a sender for the second is due
    before = asyncio.all_tasks() - {asyncio.current_task(), *tasks}
    assert len(before) == 1
    before.pop().cancel()
    await settled()
    await callers.server.reply()
    assert tasks[1].result() == "answer 2"
    (later,) = await callers.ask(3)
    await callers.server.reply()
    assert later.result() == "answer 3"


def test_close_does_not_wait_for_an_event_loop_that_is_gone() -> None:
    """A sender that a loop left behind when it was stopped is nobody's business any more."""
    callers = Callers()

    async def work() -> str:
        async with asyncio.timeout(2):
            callers.server.replies = asyncio.Semaphore(1)
            answer = await callers.batcher.submit(3, 1)
            await callers.batcher.close()
        return answer

    gone = asyncio.new_event_loop()
    gone.run_until_complete(callers.ask(1, 2))
    callers.server.replies.release()
    gone.run_until_complete(settled())
    assert callers.server.sent == [[1], [2]]
    assert asyncio.run(work()) == "answer 3"
    for task in asyncio.all_tasks(gone):
        task.cancel()
    gone.run_until_complete(settled())
    gone.close()
    assert asyncio.run(work()) == "answer 3"


async def test_a_short_deadline_in_one_batch_is_not_the_others() -> None:
    """Those who gave themselves more time get their answers when others no longer wait."""
    callers = Callers(max_weight=10_000)
    await callers.ask(0)
    hasty = await callers.ask(*range(1, 10), timeout=0.02)
    patient = await callers.ask(*range(10, 19))
    await callers.server.reply()
    assert len(callers.server.sent) == 3
    found = await asyncio.gather(*hasty, return_exceptions=True)
    assert {type(each) for each in found} == {StorageError}
    await settled()
    await callers.server.reply()
    await callers.server.reply()
    assert await asyncio.gather(*patient) == [f"answer {item}" for item in range(10, 19)]

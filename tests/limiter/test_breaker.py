"""The circuit breaker as tables: who is admitted, and what each result changes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from bot_ratelimit.storage.breaker import FIRST_PAUSE, LONGEST_PAUSE, THRESHOLD, Breaker

Step = tuple[float, str, Any]
"""A time, an action, and what the breaker returns. Somebody asks (is the request admitted?), fails
(did that open the circuit?), succeeds (did that close it?) or leaves without a result."""

OPENED: list[Step] = [
    (0, "a asks", True),
    (0, "a fails", False),
    (1, "b asks", True),
    (1, "b fails", False),
    (2, "c asks", True),
    (2, "c fails", True),
]
"""Open since 2, to be probed at 2.5."""

TABLES: dict[str, list[Step]] = {
    "three failures in a row open it": [*OPENED, (2.499, "d asks", False), (2.5, "d asks", True)],
    "a success between failures starts the count anew": [
        *OPENED[:4],
        (1, "s asks", True),
        (1, "s succeeds", True),
        *OPENED[:4],
        (2, "c asks", True),
        (2, "c fails", True),
    ],
    "one probe is on its way at a time": [
        *OPENED,
        (2.5, "d asks", True),
        (2.5, "e asks", False),
        (9, "e asks", False),
    ],
    "a probe that succeeds closes it for everybody": [
        *OPENED,
        (2.5, "d asks", True),
        (2.6, "d succeeds", True),
        (2.6, "e asks", True),
        (2.6, "f asks", True),
    ],
    "a probe that fails opens it for twice as long, and says nothing new": [
        *OPENED,
        (2.5, "d asks", True),
        (2.75, "d fails", False),
        (3.749, "e asks", False),
        (3.75, "e asks", True),
        (3.75, "e fails", False),
        (5.749, "f asks", False),
        (5.75, "f asks", True),
    ],
    "a probe that went away leaves its place to the next": [
        *OPENED,
        (2.5, "d asks", True),
        (2.6, "d goes", None),
        (2.6, "e asks", True),
        (2.6, "f asks", False),
        (2.7, "e succeeds", True),
    ],
    "what was under way together fails as one": [
        (0, "a asks", True),
        (0, "b asks", True),
        (0, "c asks", True),
        (0.2, "a fails", False),
        (0.2, "b fails", False),
        (0.2, "c fails", False),
        (0.2, "d asks", True),
    ],
    "a success from before it opened does not close it": [
        (0, "x asks", True),
        *OPENED,
        (2.1, "x succeeds", False),
        (2.2, "d asks", False),
    ],
    "a failure from before it closed does not count": [
        *OPENED[:4],
        (2, "x asks", True),
        (2, "c asks", True),
        (2, "c fails", True),
        (2.5, "d asks", True),
        (2.6, "d succeeds", True),
        (2.7, "x fails", False),
        (2.7, "e asks", True),
        (2.7, "e fails", False),
        (2.7, "f asks", True),
        (2.7, "f fails", False),
        (2.7, "g asks", True),
    ],
    "after it closed it takes three failures again, and the pause is short again": [
        *OPENED,
        (2.5, "d asks", True),
        (2.5, "d fails", False),
        (3.5, "e asks", True),
        (3.5, "e succeeds", True),
        *((time + 4, what, result) for time, what, result in OPENED),
        (6.499, "f asks", False),
        (6.5, "f asks", True),
    ],
    "one who went away while it was closed changes nothing": [
        *OPENED[:4],
        (2, "x asks", True),
        (2, "x goes", None),
        (2, "c asks", True),
        (2, "c fails", True),
    ],
}


@pytest.mark.parametrize("table", TABLES)
def test_tables(table: str) -> None:
    """Each table behaves as its heading says."""
    breaker, tickets = Breaker(), dict[str, int | None]()
    for now, what, expected in TABLES[table]:
        who, does = what.split()
        if does == "asks":
            tickets[who] = breaker.admit(partial(float, now))
            found: object = tickets[who] is not None
        else:
            ticket = tickets[who]
            assert ticket is not None
            found = {
                "fails": lambda ticket=ticket, now=now: breaker.failed(ticket, now),
                "succeeds": lambda ticket=ticket: breaker.succeeded(ticket),
                "goes": lambda ticket=ticket: breaker.abandoned(ticket),
            }[does]()
        assert found == expected, (now, what)


def fail(breaker: Breaker, now: float) -> None:
    ticket = breaker.admit(lambda: now)
    assert ticket is not None
    breaker.failed(ticket, now)


def test_pauses_grow_and_are_capped() -> None:
    """Each failed probe doubles the pause, up to the cap."""
    breaker, now, pauses = Breaker(), 0.0, []
    for _ in range(THRESHOLD):
        fail(breaker, now)
    for _ in range(8):
        pauses.append(breaker.wait(now))
        now += pauses[-1]
        fail(breaker, now)
    assert pauses == [FIRST_PAUSE, 1, *[LONGEST_PAUSE] * 6]


def test_wait_is_the_time_until_the_next_probe() -> None:
    """`wait` is 0 while closed and decreases while open; a late probe keeps it at 0."""
    breaker = Breaker()
    assert (breaker.closed, breaker.wait(0)) == (True, 0)
    for _ in range(THRESHOLD):
        fail(breaker, 10)
    assert not breaker.closed
    assert [breaker.wait(now) for now in (10, 10.3, 10.5, 99)] == [0.5, pytest.approx(0.2), 0, 0]

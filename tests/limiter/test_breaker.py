"""The circuit breaker as tables: who is admitted, and what each result changes."""

from __future__ import annotations

from functools import partial

import pytest

from bot_ratelimit.storage.breaker import FIRST_PAUSE, LONGEST_PAUSE, THRESHOLD, Breaker
from tests.tables import table

# A step is a time, who does what, and whether the breaker said yes. Somebody asks (is the request
# admitted?), fails (did that open the circuit?), succeeds (did that close it?), or goes without a
# result. OPENED is open since 2, to be probed at 2.5.
TWO_FAIL = "0 a asks yes, 0 a fails no, 1 b asks yes, 1 b fails no"
OPENED = f"{TWO_FAIL}, 2 c asks yes, 2 c fails yes"
LATER = "4 a asks yes, 4 a fails no, 5 b asks yes, 5 b fails no, 6 c asks yes, 6 c fails yes"

TABLES = {
    "three failures in a row open it": f"{OPENED}, 2.499 d asks no, 2.5 d asks yes",
    "a success between failures starts the count again": (
        f"{TWO_FAIL}, 1 s asks yes, 1 s succeeds yes, {TWO_FAIL}, 2 c asks yes, 2 c fails yes"
    ),
    "one probe is on its way at a time": f"{OPENED}, 2.5 d asks yes, 2.5 e asks no, 9 e asks no",
    "a probe that succeeds closes it for everybody": (
        f"{OPENED}, 2.5 d asks yes, 2.6 d succeeds yes, 2.6 e asks yes, 2.6 f asks yes"
    ),
    "a probe that fails opens it for twice as long, and says nothing new": (
        f"{OPENED}, 2.5 d asks yes, 2.75 d fails no, 3.749 e asks no, 3.75 e asks yes, "
        "3.75 e fails no, 5.749 f asks no, 5.75 f asks yes"
    ),
    "a probe that went away leaves its place to the next": (
        f"{OPENED}, 2.5 d asks yes, 2.6 d goes, 2.6 e asks yes, 2.6 f asks no, 2.7 e succeeds yes"
    ),
    "what was under way together fails as one": (
        "0 a asks yes, 0 b asks yes, 0 c asks yes, 0.2 a fails no, 0.2 b fails no, 0.2 c fails no, "
        "0.2 d asks yes"
    ),
    "a success from before it opened does not close it": (
        f"0 x asks yes, {OPENED}, 2.1 x succeeds no, 2.2 d asks no"
    ),
    "a failure from before it closed does not count": (
        f"{TWO_FAIL}, 2 x asks yes, 2 c asks yes, 2 c fails yes, 2.5 d asks yes, "
        "2.6 d succeeds yes, 2.7 x fails no, 2.7 e asks yes, 2.7 e fails no, 2.7 f asks yes, "
        "2.7 f fails no, 2.7 g asks yes"
    ),
    "after it closed it takes three failures again, and the pause is short again": (
        f"{OPENED}, 2.5 d asks yes, 2.5 d fails no, 3.5 e asks yes, 3.5 e succeeds yes, {LATER}, "
        "6.499 f asks no, 6.5 f asks yes"
    ),
    "one who went away while it was closed changes nothing": (
        f"{TWO_FAIL}, 2 x asks yes, 2 x goes, 2 c asks yes, 2 c fails yes"
    ),
}


@table("table", TABLES)
def test_tables(table: str) -> None:
    """Each table behaves as its heading says."""
    breaker, tickets = Breaker(), dict[str, int | None]()
    for step in TABLES[table].split(", "):
        now, who, does, *said = step.split()
        if does == "asks":
            tickets[who] = breaker.admit(partial(float, now))
            found: object = tickets[who] is not None
        else:
            ticket = tickets[who]
            assert ticket is not None
            found = {
                "fails": partial(breaker.failed, ticket, float(now)),
                "succeeds": partial(breaker.succeeded, ticket),
                "goes": partial(breaker.abandoned, ticket),
            }[does]()
        assert found is (said[0] == "yes" if said else None), step


def fail(breaker: Breaker, now: float) -> None:
    ticket = breaker.admit(lambda: now)
    assert ticket is not None
    breaker.failed(ticket, now)


def test_pauses_grow_and_are_capped() -> None:
    """Each failed probe doubles the pause, up to the cap; a late probe leaves no negative one."""
    breaker, now, pauses = Breaker(), 10.0, []
    assert (breaker.closed, breaker.wait(0)) == (True, 0)
    for _ in range(THRESHOLD):
        fail(breaker, now)
    assert not breaker.closed
    assert [breaker.wait(10 + late) for late in (0.3, 0.5, 99)] == [pytest.approx(0.2), 0, 0]
    for _ in range(8):
        pauses.append(breaker.wait(now))
        now += pauses[-1]
        fail(breaker, now)
    assert pauses == [FIRST_PAUSE, 1, *[LONGEST_PAUSE] * 6]

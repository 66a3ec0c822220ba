"""What operators are told is what happens."""

from __future__ import annotations

from typing import Any

import pytest

from bot_ratelimit import Limiter, Penalty, Rule, Scope, Subject
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.fields import checked
from bot_ratelimit.admin.operations import OPERATIONS
from bot_ratelimit.admin.wording import ENGLISH
from bot_ratelimit.admin.words import plain
from bot_ratelimit.storage.base import Storage

from .web import running_bot

ANNA = Subject(user=42, chat=42)


async def asked(control: Control, name: str, /, **given: Any) -> list[str]:
    """What an operation asks first, in sentences."""
    operation = OPERATIONS[name]
    assert operation.ask is not None
    question = await operation.ask(control, ENGLISH, checked(operation.fields, given))
    return [plain(point) for point in question.points]


async def told(control: Control, name: str, /, **given: Any) -> list[str]:
    """What is shown of an operation, without its table."""
    operation = OPERATIONS[name]
    found = await operation.act(control, checked(operation.fields, given))
    return [plain(line) for line in operation.sheet(ENGLISH, found).lines]


@pytest.mark.parametrize("penalty", [Penalty("2/h", "2h"), None])
async def test_a_penalty_that_is_given_is_in_force(
    storage: Storage, penalty: Penalty | None
) -> None:
    """Also after the penalty was switched off, and one that operators added was taken away."""
    async with running_bot(storage, rules=["1/h"], penalty=penalty) as site:
        control = site.control
        await control.changes.set_penalty("3/h", "1h")
        await site.obey()
        await control.set_rule("ban", off=True)
        await control.changes.set_penalty(None)
        await site.obey()
        views = {view.name: view for view in await control.limits()}
        assert ("ban" in views) == (penalty is not None)
        assert not any(view.off for view in views.values())
        assert (await asked(control, "penalty", after="2/h", ban="1h"))[0].endswith(
            "-> ban of 1 h after 2/hour"
        )
        await control.changes.set_penalty("2/h", "1h")
        await site.obey()
        await site.send(9)
        (ban,) = await control.bans()
        assert ban.by == "penalty"


def by_plan(subject: Subject) -> str:
    return "2/h sliding"


FUNCTIONS = (
    (Rule(by_plan), "user"),
    (Rule("2/h", lambda subject: "acme", name="firm"), "firm:custom"),
)


@pytest.mark.parametrize(("rule", "name"), FUNCTIONS)
async def test_what_a_function_decides_is_not_known_to_operators(
    storage: Storage, rule: Rule, name: str
) -> None:
    """If the bot may refuse a user, `show` and `try` do not just say "allowed"."""
    async with running_bot(storage, rules=[rule, Rule("9/h", Scope.CHAT)]) as site:
        assert await site.send(3) == 2
        control = site.control
        unknown = f"Not known here: {name}. A function in the bot's code decides, and may refuse."
        shown = await told(control, "show", id=42)
        assert "User 42: allowed by the limits that are known here" in shown
        assert unknown in shown
        assert await told(control, "try", id=42) == ["Allowed: 7 left of chat (9/hour).", unknown]
        assert (await control.try_(ANNA)).unknown == (name,)
        await control.set_rule("chat", off=True)
        await site.obey()
        known = "Allowed by the limits that are known here."
        assert await told(control, "try", id=42) == [known, unknown]
        await control.set_rule(name, off=True)
        await site.obey()
        assert await told(control, "try", id=42) == ["Allowed: no limit applies."]
        await control.changes.set_exempt(42, True)
        assert "Not known" not in " ".join(await told(control, "show", id=42))


async def test_counts_by_a_function_are_forgiven_as_told(storage: Storage) -> None:
    """Operators are told that a count is deleted where only the bot knows whether there is one."""
    async with running_bot(storage, rules=[by_plan]) as site:
        await site.send(3)
        points = await asked(site.control, "forgive", id=42)
        assert points[0] == "user: the count is deleted, if there is one."
        assert "user" in await site.control.forgive(ANNA)
        assert await site.send(1) == 1


async def test_a_function_that_comes_back_into_force_is_named(storage: Storage) -> None:
    """Undoing a live limit, or rolling it back, tells which function decides then."""
    async with running_bot(storage, rules=[by_plan]) as site:
        control = site.control
        await control.set_rule("user", "5/h", shadow=True)
        await site.obey()
        back = "user: 5/hour (trial) -> by by_plan"
        assert (await asked(control, "set", name="user", default=True))[0] == back
        assert (await asked(control, "rollback"))[0] == back
        (view, *_) = await control.limits()
        assert (view.limit, view.function, view.otherwise) == ("5/hour", "by_plan", None)
        rows = OPERATIONS["limits"].sheet(ENGLISH, await control.config()).rows
        assert plain(rows[0][-1]) == "from live, otherwise by by_plan"
        await control.changes.rollback()
        changed = ("user: 5/hour (trial) -> by by_plan",)
        assert (await control.history())[0].changed == changed
        assert (await control.audit())[0].changed == changed


async def test_whether_counts_are_kept_is_told(storage: Storage) -> None:
    """They are not where the algorithm changes, nor of a handler that gets its first limit."""
    kept = "Counts are kept: users above the new limit have to wait."
    zero = "Counts are not kept: everybody starts from zero."
    unknown = "Counts are kept if the function in the bot's code uses the same algorithm."
    rules = [Rule("4/day"), Rule(by_plan, name="plan", shadow=True)]
    async with running_bot(storage, rules=rules) as site:
        (handler,) = (await site.control.instances())[0].handlers
        for name, limit, what in (
            ("user", "2/day", kept),
            ("user", "2/day in Europe/Moscow", kept),
            ("user", "2/day sliding", zero),
            ("user", "2/day burst 3", zero),
            ("plan", "2/day", unknown),
            (handler, "2/day", zero),
        ):
            points = await asked(site.control, "set", name=name, limit=limit)
            assert [each for each in points if "Counts" in each] == [what]
        assert await site.send(9) == 4
        await site.control.set_rule("user", "2/day sliding")
        await site.obey()
        assert await site.send(9) == 2


async def test_a_rollback_does_not_bring_back_a_pause_that_is_over(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version in which all limits were off until a time that is past has them on."""
    control = Control(Limiter(storage, timeout=5), "anna", patience=0)
    monkeypatch.setattr("bot_ratelimit.admin.changes.check_pause", lambda how_long: -1.0)
    await control.changes.pause("1m")
    await control.changes.resume()
    await control.changes.set_exempt(42, True)
    points = await asked(control, "rollback", version=1)
    assert (points[0], points[1][:9]) == ("exempt: 42 removed", "Version 1")
    assert (await control.changes.rollback(1)).off_until == 0
    assert (await control.audit())[0].changed == ("exempt: 42 removed",)
    await control.limiter.close()

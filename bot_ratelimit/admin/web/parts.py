"""Parts: the cards of a page, each with a table and its links."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlencode

from bot_ratelimit.admin import sheets
from bot_ratelimit.admin.sheets import Sheet
from bot_ratelimit.admin.views import ConfigView, RuleUse
from bot_ratelimit.admin.web.rendering import link
from bot_ratelimit.admin.words import Words, code
from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.errors import RateLimitError
from bot_ratelimit.storage.banlist import Ban

_HANDLERS: Final = 30
"""Handlers without a limit of their own that the overview lists."""

Links = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A part of a page; if it cannot be loaded, the page still shows the other parts."""

    value: Any = None
    problem: str = ""

    @classmethod
    async def of(cls, ask: Callable[..., Awaitable[Any]], *arguments: Any) -> Loaded:
        """The result, or why it is not available."""
        try:
            return cls(await ask(*arguments))
        except RateLimitError as error:
            return cls(problem=str(error))


@dataclass(frozen=True, slots=True)
class Part:
    """A card with a table; each row has its links."""

    name: str
    title: str
    sheet: Sheet = Sheet()  # noqa: RUF009 - frozen
    links: Sequence[Links] = ()
    header: Links = ()
    problem: str = ""

    @classmethod
    def of(
        cls,
        words: Words,
        name: str,
        title: str,
        loaded: Loaded,
        show: Callable[[Words, Any], Sheet],
        links: Callable[[Any], Links] | None = None,
        header: Links = (),
    ) -> Part:
        """What was loaded, with links for each row; or why it is not available."""
        if loaded.problem:
            return cls(name, words(title), header=header, problem=loaded.problem)
        rows = [links(each) for each in loaded.value] if links is not None else ()
        return cls(name, words(title), show(words, loaded.value), rows, header)


def bans(words: Words, bans: Loaded, header: Links = ()) -> Part:
    """Who is banned."""

    def links(ban: Ban) -> Links:
        who = link(ban.subject)
        return [(f"user?{who}", words("Show")), (f"unban?{who}", words("Lift"))]

    header = [("ban", words("Ban somebody")), *header]
    return Part.of(words, "bans", "Bans", bans, sheets.bans, links, header)


def history(words: Words, history: Loaded, header: Links) -> Part:
    """The versions to roll back to."""
    part = Part.of(words, "history", "Versions of the live limits", history, sheets.history,
                   lambda each: [(f"rollback?version={each.live.version}", words("Roll back"))],
                   header)  # fmt: skip
    return replace(part, links=[(), *part.links[1:]])  # the newest one is in force


def limits(words: Words, config: Loaded, limits: Loaded, use: Sequence[RuleUse]) -> Part:
    """Every rule, its use, and the handlers that can get a limit."""
    title = words("Limits")
    if config.value is None and limits.value is None:
        return Part("limits", title, problem=limits.problem)
    # During an outage: what this process knows.
    view = config.value or ConfigView("", "", (), Overrides(), (), limits.value)
    sheet = sheets.limits(words, view)
    counted = {each.name: each for each in use}
    columns = ["allowed", "refused", "banned", "remaining"]
    if all(each.remaining is None for each in use):
        columns.pop()
    rows: list[tuple[object, ...]] = []
    links: list[Links] = []

    def add(name: str, cells: Sequence[object], path: str = "limit") -> None:
        used = counted.pop(name, None)
        rows.append((*cells, *(getattr(used, each, "") for each in columns)))
        links.append([(f"{path}?{urlencode({'name': name})}", words("Change"))] if path else [])

    for rule, cells in zip(view.rules, sheet.rows, strict=True):
        add(rule.name, cells, "penalty" if rule.ban_ms else "limit")
    for name in list(counted):
        add(name, (name, words("no rule in force"), "", "", ""), "")
    for name in sorted({name for each in view.instances for name in each.handlers})[:_HANDLERS]:
        add(name, (code(name, 100), words("as every handler"), "", "", ""))
    header = [("pause", words("Pause all limits"))]
    if not any(each.ban_ms for each in view.rules):
        header.insert(0, ("penalty", words("Add a ban for users who keep sending")))
    names = ("ALLOWED", "REFUSED", "BANNED", "LEFT NOW")
    head = [*sheet.head, *(words(name) for name in names[: len(columns)])]
    foot = list(sheet.foot) if config.value is not None else [words("As this instance knows them.")]
    if use:
        text = "Each decision is counted once: for the limit that refused, or had the least left."
        foot.append(words(text))
    found = replace(sheet, lines=(), head=head, rows=rows, foot=foot)
    return Part("limits", title, found, links, header)


def top(span: int | None) -> Callable[[Words, Any], Sheet]:
    """How the users who were refused most often are shown."""

    def show(words: Words, found: Any) -> Sheet:
        foot = [words("In this hour and the one before.")] if span is None else []
        return replace(sheets.top(words, found), foot=foot)

    return show

"""Printing: results as text for people, and as JSON for programs.

Reasons of bans and names of operators and rules may contain anything. Nothing in them is markup,
and what a terminal would obey is escaped.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from bot_ratelimit.admin import wording
from bot_ratelimit.admin.encoding import plain, to_json
from bot_ratelimit.admin.views import (
    ConfigView,
    Entry,
    HealthView,
    InstanceView,
    RuleView,
    SubjectView,
    who,
)
from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.errors import printable
from bot_ratelimit.limiter.arguments import FOREVER
from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.rules.duration import duration
from bot_ratelimit.storage.banlist import Ban

_WIDE: Final = 200
"""Columns if the output is a pipe: wide, so that programs such as grep see whole lines."""


def console(*, stderr: bool = False) -> Console:
    """Where results go: as wide as the terminal, or as COLUMNS says."""
    piped = not (sys.stderr if stderr else sys.stdout).isatty() and "COLUMNS" not in os.environ
    return Console(width=_WIDE if piped else None, highlight=False, soft_wrap=False, stderr=stderr)


def say(*lines: RenderableType, stderr: bool = False) -> None:
    """Print lines and tables."""
    out = console(stderr=stderr)
    for line in lines:
        out.print(literal(line))


def literal(line: RenderableType) -> RenderableType:
    """A line without markup, with control characters escaped; a table stays a table."""
    return Text(printable(line)) if isinstance(line, str) else line


def print_json(value: Any) -> None:
    """Print a value as one line of JSON, in which control characters are escaped."""
    # In JSON, only strings contain such characters.
    line = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in to_json(value))
    sys.stdout.write(line + "\n")


def amount(number: int, thing: str) -> str:
    """`1 key`, `2 keys`."""
    return f"{number} {thing}" + ("" if number == 1 else "s")


def moment(at: float) -> str:
    """A Unix time in the operator's time zone."""
    return f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M:%S}" if at else ""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table whose cells wrap instead of being cut."""
    found = Table(box=None, pad_edge=False, header_style="bold")
    for name in head:
        found.add_column(name, overflow="fold")
    for row in rows:
        found.add_row(*("" if cell is None else literal(str(cell)) for cell in row))
    return found


def listing(values: Sequence[Any], nothing: str) -> RenderableType:
    """A table of values of one kind, with their fields as columns."""
    rows = [plain(value) for value in values]
    if not rows:
        return nothing
    if not isinstance(rows[0], dict):
        rows = [{"": row} for row in rows]
    return table([name.upper() for name in rows[0]], [[*row.values()] for row in rows])


def rules(views: Sequence[RuleView]) -> Table:
    """The rules in force."""
    return table(
        ("NAME", "LIMIT", "COUNTED BY", "FOR", "FROM"),
        [(view.name, limit_of(view), view.scope or "custom", view.where, _origin(view))
         for view in views],
    )  # fmt: skip


def limit_of(view: RuleView) -> str:
    """What a rule allows, and whether it is a shadow rule or off."""
    text = view.limit or "by the bot's code"
    if view.ban_ms:
        text = f"ban of {duration(view.ban_ms / 1e3)} after {text}"
    marks = [word for word, on in (("shadow", view.shadow), ("off", view.off)) if on]
    return text + (f" ({', '.join(marks)})" if marks else "")


def _origin(view: RuleView) -> str:
    return f"{view.origin} (otherwise {view.otherwise})" if view.otherwise else view.origin


def config(view: ConfigView) -> list[RenderableType]:
    """What is in force, and where it comes from."""
    live = view.live
    changed = f"version {live.version}" if live.version else "nothing changed"
    if live.version:
        changed += f", {live.what}, by {live.by}, {moment(live.at)}"
    parts: list[RenderableType] = [
        f"prefix {view.prefix} on {view.storage}",
        f"live: {changed}",
        *([f"problem: {view.problem}"] if view.problem else []),
        *_switches(live),
        "",
        rules(view.rules),
        "",
        instances(view),
    ]
    if view.settings:
        rows = [(each.name, each.value, each.origin) for each in view.settings]
        parts += ["", table(("SETTING", "VALUE", "FROM"), rows)]
    return parts


def _switches(live: Overrides) -> list[str]:
    lines = []
    if live.off_until:
        lines.append(f"live: all limits off until {moment(live.off_until)}")
    for word, ids in (("exempt", live.exempt), ("not exempt", live.limited)):
        if ids:
            lines.append(f"live: {word}: {', '.join(map(str, sorted(ids)))}")
    return lines


def nobody_reports(prefix: str) -> str:
    """Say that no bot with live limits runs with this prefix, and what to check."""
    return (
        f"no running bot reports under {prefix!r}: is REDIS_KEY_PREFIX that of the bot, "
        "and live=True in its code?"
    )


def instances(view: ConfigView) -> RenderableType:
    """The running instances and the version that each obeys."""
    if not view.instances:
        return nobody_reports(view.prefix)
    return table(
        ("INSTANCE", "VERSION", "REJECTED", "PROBLEM"),
        [
            (each.name, each.version, each.rejected, each.problem or _differing(view, each))
            for each in view.instances
        ],
    )


def _differing(view: ConfigView, instance: InstanceView) -> str:
    found = [f"{each.name} {limit_of(each)}" for each in view.differing(instance)]
    return f"other limits: {', '.join(found)}" if found else ""


def subject(view: SubjectView) -> list[RenderableType]:
    """What a user or chat has left of each rule."""
    somebody = " ".join(f"{name} {each}" for name, each in view.subject.items())
    if view.exempt:
        verdict = "exempt" if view.banned is None else "exempt, so the ban does not apply"
    elif view.off_until:
        verdict = f"allowed: all limits are off until {moment(view.off_until)}"
    elif view.allowed:
        verdict = "allowed"
    elif view.banned is not None and view.banned.until is None:
        verdict = "refused"
    else:
        verdict = f"refused, allowed again in {duration(view.retry_after)}"
    lines: list[RenderableType] = [f"{somebody}: {verdict}"]
    if view.refused is not None:
        lines.append(f"refused {amount(view.refused, 'time')} in the last 24 hours")
    if view.banned is not None:
        lines.append(ban(view.banned))
    rows = []
    for each in view.counts:
        left = "?" if each.remaining is None else f"{each.remaining} of {each.capacity}"
        allowed = "now" if each.allowed else f"in {duration(each.retry_after)}"
        rows.append((each.rule, left, allowed, each.key))
    return [*lines, table(("RULE", "LEFT", "ALLOWED", "KEY"), rows)]


def decision(found: Decision | None) -> str:
    """Whether an update would be handled, and if not, until when; None if no limit applies."""
    if found is None:
        return "allowed: not limited"
    if found.allowed:
        return f"allowed: {found.remaining} left of {found.rule}"
    if found.retry_after >= FOREVER:
        return "banned forever"
    if found.banned:
        return f"banned, for {duration(found.retry_after)}"
    return f"refused by {found.rule}, for {duration(found.retry_after)}"


def ban(found: Ban) -> str:
    """Describe a ban: its end, who made it, and the reason."""
    by = f", by {found.by}" if found.by else ""
    return f"banned {ban_length(found)}{by}" + (f": {found.reason}" if found.reason else "")


def ban_length(found: Ban) -> str:
    """`forever`, or `until 2026-03-01 12:00:00`."""
    return "forever" if found.until is None else f"until {moment(found.until.timestamp())}"


def bans(found: Sequence[Ban]) -> RenderableType:
    """The list of bans."""
    if not found:
        return "nobody is banned"
    return table(
        ("WHO", "BANNED", "BY", "REASON"),
        [(who(each.subject), ban_length(each), each.by, each.reason) for each in found],
    )


def history(versions: Sequence[Overrides]) -> RenderableType:
    """The versions to roll back to."""
    if not versions:
        return "nothing was changed yet"
    return table(
        ("VERSION", "WHEN", "BY", "WHAT", "CHANGES"),
        [(each.version, moment(each.at), each.by, each.what, changes(each)) for each in versions],
    )


def audit(entries: Sequence[Entry]) -> RenderableType:
    """What operators did."""
    if not entries:
        return "no actions yet"
    return table(
        ("WHEN", "BY", "WHAT", "BEFORE", "AFTER"),
        [(moment(each.at), each.by, each.what, each.before, each.after) for each in entries],
    )


def health(view: HealthView) -> str:
    """Whether limits are enforced, in a line."""
    if not view.ok:
        return f"unhealthy: {view.problem}"
    return (
        f"healthy: answered in {view.seconds * 1e3:.0f} ms, {amount(view.instances, 'instance')}, "
        f"{view.behind} of them behind version {view.version}"
    )


def changes(live: Overrides) -> str:
    """What a version changes, in a line."""
    return wording.changes(live) or "no live changes"

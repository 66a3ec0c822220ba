"""Commands that change limits while the bot runs, and those that show and undo it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from bot_ratelimit.admin.changes import check_pause
from bot_ratelimit.admin.cli import printing
from bot_ratelimit.admin.cli.dialogue import confirm, show_result
from bot_ratelimit.admin.cli.options import IDS, Json, Yes, check_id
from bot_ratelimit.admin.cli.session import checked, fail, read_settings, run
from bot_ratelimit.admin.control import Control
from bot_ratelimit.config.limits_file import penalty_of
from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.errors import ConfigError

commands = typer.Typer()


@commands.command("set")
def set_(
    name: Annotated[str, typer.Argument(help="The rule's name, as in `limits`.")],
    limit: Annotated[str | None, typer.Argument(help="For example 2/minute.")] = None,
    shadow: Annotated[bool | None, typer.Option(help="Only count and report, or refuse.")] = None,
    off: Annotated[bool | None, typer.Option("--off/--on", help="Switch it off, or on.")] = None,
    default: Annotated[
        bool, typer.Option("--default", help="Undo all changes of the rule.")
    ] = False,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Change a rule on every instance; counts stay."""
    if default and (limit, shadow, off) != (None, None, None):
        fail(ConfigError("--default undoes all changes: give no other option and no limit"))
    found = run(
        lambda control: control.preview(name, limit, shadow=shadow, off=off, default=default)
    )
    before, after = printing.limit_of(found.before), printing.limit_of(found.after)
    running = printing.amount(found.instances, "instance")
    confirm("Change?", yes, json, f"{name}: {before} -> {after}, on {running}")

    async def act(control: Control) -> Overrides:
        if default:
            return await control.changes.unset_rule(name, if_version=found.version)
        return await control.set_rule(name, limit, shadow=shadow, off=off, if_version=found.version)

    _finish(act, json)


@commands.command()
def penalty(
    after: Annotated[
        str | None, typer.Argument(help="Refused attempts, such as 10/minute.")
    ] = None,
    ban: Annotated[str, typer.Argument(help="The length of the ban.")] = "15m",
    grows: Annotated[
        bool, typer.Option("--grows", help="Double the ban if the user keeps sending during it.")
    ] = False,
    default: Annotated[bool, typer.Option("--default", help="Undo the change.")] = False,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Change or add the ban for users who keep sending while they are refused."""
    if default == (after is not None):
        fail(ConfigError("give either a penalty, such as 10/minute 15m, or --default"))
    words = "as without live changes" if default else f"{ban} after {after}"
    if after is not None:
        checked(penalty_of, {"after": after, "ban": ban})
    _change(
        f"penalty: {words}",
        lambda control, version: control.changes.set_penalty(
            after, ban, if_version=version, **({"grows": True} if grows else {})
        ),
        yes,
        json,
    )


@commands.command(context_settings=IDS)
def exempt(
    id_: Annotated[int, typer.Argument(metavar="ID", help="The id of a user or a chat.")],
    undo: Annotated[
        bool, typer.Option("--not", help="Limit it, even if the configuration exempts it.")
    ] = False,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Exempt a user or a chat from all limits."""
    checked(check_id, id_)
    words = "limited, even if the configuration exempts it" if undo else "exempt from all limits"
    _change(
        f"{id_}: {words}",
        lambda control, version: control.changes.set_exempt(id_, not undo, if_version=version),
        yes,
        json,
    )


@commands.command()
def pause(
    how_long: Annotated[str, typer.Argument(help="For example 1h; at most a day.")],
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Switch all limits off for some time."""
    checked(check_pause, how_long)
    _change(
        f"all limits off for {how_long}",
        lambda control, version: control.changes.pause(how_long, if_version=version),
        yes,
        json,
    )


@commands.command()
def resume(yes: Yes = False, json: Json = False) -> None:
    """Switch all limits on again."""
    _change(
        "all limits on",
        lambda control, version: control.changes.resume(if_version=version),
        yes,
        json,
    )


@commands.command()
def history(json: Json = False) -> None:
    """List the versions to roll back to."""
    found = run(lambda control: control.changes.history())
    show_result(found, json, printing.history(found))


@commands.command()
def audit(json: Json = False) -> None:
    """List the last 200 actions of operators."""
    found = run(lambda control: control.audit())
    show_result(found, json, printing.audit(found))


@commands.command()
def rollback(
    version: Annotated[
        int | None, typer.Argument(help="0 drops all changes; by default the previous.")
    ] = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Return to an earlier version."""
    found = run(lambda control: control.changes.preview_rollback(version))
    live, target = found.live, found.target
    now = f"version {live.version} is in force: {printing.changes(live)}"
    if found.is_invalid:
        now = f"the live document is invalid; version {live.version} stays in force"
    words = (
        now,
        f"roll back to version {target.version}: {printing.changes(target)}",
    )
    confirm("Roll back?", yes, json, *words)
    _finish(lambda control: control.changes.rollback(target.version, if_version=live.version), json)


def _change(
    words: str,
    act: Callable[[Control, int], Awaitable[Overrides]],
    yes: bool,
    json: bool,
) -> None:
    """Show a change, ask, and make it."""
    now = run(lambda control: control.config())
    if now.problem:
        fail(ConfigError(now.problem))
    told = f"{words}, on {printing.amount(len(now.instances), 'instance')}"
    confirm("Change?", yes, json, told)
    _finish(lambda control: act(control, now.live.version), json)


def _finish(act: Callable[[Control], Awaitable[Overrides]], json: bool) -> None:
    """Make a change, and say on how many instances it is in force."""

    async def done(control: Control) -> tuple[int, int, int]:
        version = (await act(control)).version
        instances = await control.wait_for(version)
        return version, sum(each.version >= version for each in instances), len(instances)

    version, obeying, running = run(done)
    text = f"version {version} is in force on {obeying} of {printing.amount(running, 'instance')}"
    if not running:
        prefix = read_settings().redis_key_prefix
        text = f"version {version} is written; {printing.nobody_reports(prefix)}"
    found = {"version": version, "obeying": obeying, "instances": running}
    show_result(found, json, text)

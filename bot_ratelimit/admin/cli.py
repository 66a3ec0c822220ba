"""The command `bot-ratelimit`: `Control` for a shell.

Exit status: 0 done; 1 the answer is no (`try`: refused, `health`: unhealthy); 2 a mistake in the
command or the configuration; 3 Redis cannot be reached; 4 somebody else changed the limits in the
meantime; 5 not confirmed.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Final, NoReturn, TypeVar

import typer
from rich.console import Group, RenderableType
from rich.live import Live as Screen

from bot_ratelimit.admin import printing, wording
from bot_ratelimit.admin.changes import ConflictError, check_pause
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.views import LARGEST_ID, ConfigView, HealthView, who
from bot_ratelimit.bans import FOREVER, check_ban_length
from bot_ratelimit.errors import ConfigError, RateLimitError, StorageError
from bot_ratelimit.incoming.notices import Notices
from bot_ratelimit.limits_file import penalty_of, read_limits_file
from bot_ratelimit.overrides import Overrides
from bot_ratelimit.rule import Subject
from bot_ratelimit.settings import Settings

_T = TypeVar("_T")

NO, WRONG, OUT_OF_REACH, CONFLICT, NOT_CONFIRMED = 1, 2, 3, 4, 5
_STATUSES: Final = (
    (StorageError, OUT_OF_REACH),
    (ConflictError, CONFLICT),
    (RateLimitError, WRONG),
)

app = typer.Typer(
    help="Inspect, forgive, ban and change the limits of a running bot. Reads the same environment "
    "and .env as the bot.",
    epilog="Exit status: 0 done; 1 the answer is no; 2 a mistake in the command or configuration; "
    "3 Redis cannot be reached; 4 somebody else changed the limits in the meantime; "
    "5 not confirmed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="One line of JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
# Chats have negative ids, which must not be parsed as options.
User = Annotated[int, typer.Argument(help="The user's id; a negative one is a chat's.")]
Chat = Annotated[int | None, typer.Option(help="A chat's id; by default the private chat.")]
OneChat = Annotated[int | None, typer.Option("--chat", help="In this chat only.")]
Topic = Annotated[int | None, typer.Option(help="A topic's id.")]
Bot = Annotated[int | None, typer.Option(help="The bot's id, if each bot counts for itself.")]
_IDS: Final = {"ignore_unknown_options": True}


@app.command()
def config(json: Json = False) -> None:
    """Show what is in force, on which instances, and where it comes from."""
    found = _run(lambda control: control.config())
    _show(found, json, lambda: printing.say(*printing.config(found)))


@app.command()
def limits(json: Json = False) -> None:
    """List every rule of every middleware and flag."""
    found = _run(lambda control: control.config())
    nobody = [] if found.instances else [printing.instances(found)]
    _show(found.rules, json, lambda: printing.say(printing.rules(found.rules), *nobody))


@app.command(context_settings=_IDS)
def show(
    user: User, chat: Chat = None, topic: Topic = None, bot: Bot = None, json: Json = False
) -> None:
    """Show what a user has left of every rule; charges nothing."""
    found = _run(lambda control: control.show(_subject(user, chat, topic, bot)))
    _show(found, json, lambda: printing.say(*printing.subject(found)))


@app.command("try", context_settings=_IDS)
def try_(
    user: User,
    chat: Chat = None,
    topic: Topic = None,
    bot: Bot = None,
    rule: Annotated[str | None, typer.Option(help="A handler's own limit, by name.")] = None,
    json: Json = False,
) -> None:
    """Test whether an update of a user would be handled now: status 0 or 1; charges nothing."""
    found = _run(lambda control: control.try_(_subject(user, chat, topic, bot), rule))
    if found is None:
        text = "allowed: not limited"
    elif found.allowed:
        text = f"allowed: {found.remaining} left of {found.rule}"
    elif found.retry_after >= FOREVER:
        text = "banned forever"
    elif found.banned:
        text = f"banned, for {wording.duration(found.retry_after)}"
    else:
        text = f"refused by {found.rule}, for {wording.duration(found.retry_after)}"
    _show({"allowed": True} if found is None else found, json, lambda: printing.say(text))
    if found is not None and not found.allowed:
        raise typer.Exit(NO)


@app.command(context_settings=_IDS)
def forgive(
    user: User,
    rules: Annotated[list[str] | None, typer.Option("--rule", help="Only this rule.")] = None,
    chat: Chat = None,
    topic: Topic = None,
    bot: Bot = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Delete the counts of a user, of all rules by default, and lift a ban by a penalty."""
    subject = _subject(user, chat, topic, bot)
    before = _run(lambda control: control.show(subject))
    _confirm(printing.subject(before), "Forgive?", yes, json)
    found = _run(lambda control: control.forgive(subject, rules or ()))
    text = f"forgiven: {', '.join(found)}" if found else "there was nothing to forgive"
    if before.banned is not None and not before.banned.key:
        text += f"\nstill {printing.ban(before.banned)}; only `bot-ratelimit unban` lifts that"
    _show({"forgiven": found}, json, lambda: printing.say(text))


@app.command(context_settings=_IDS)
def ban(
    user: User,
    how_long: Annotated[str, typer.Argument(help="A period, for example 1h, or forever.")],
    reason: Annotated[str, typer.Argument(help="Why, for the other operators.")] = "",
    chat: OneChat = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Refuse everything from a user or a chat, on every instance."""
    subject = _banned(user, chat)
    _checked(check_ban_length, None if how_long == "forever" else how_long)
    length = how_long if how_long == "forever" else f"for {how_long}"
    words = f"ban {who(subject)} {length}" + (f": {reason}" if reason else "")
    _confirm([words], "Ban?", yes, json)
    found = _run(lambda control: control.ban(subject, how_long, reason))
    _show(found, json, lambda: printing.say(f"banned {printing.ban_length(found)}"))


@app.command(context_settings=_IDS)
def unban(
    user: User, chat: OneChat = None, bot: Bot = None, yes: Yes = False, json: Json = False
) -> None:
    """Lift the ban of a user or a chat, also one by a penalty; --chat for a ban in one chat."""
    subject = _banned(user, chat)._replace(bot=bot)
    _confirm([f"unban {who(subject)}"], "Unban?", yes, json)
    found = _run(lambda control: control.unban(subject))
    text = "unbanned" if found else "was not banned"
    if not found and subject.chat is None:
        text += "; for a ban in one chat, add --chat"
    _show({"unbanned": found}, json, lambda: printing.say(text))


@app.command()
def bans(
    limit: Annotated[int, typer.Option(help="How many, up to 1000.")] = 100,
    offset: Annotated[int, typer.Option(help="How many to skip.")] = 0,
    json: Json = False,
) -> None:
    """List all bans with their end, operator and reason; those that end first come first."""
    found = _run(lambda control: control.bans(offset, limit))
    _show(found, json, lambda: printing.say(printing.bans(found)))


@app.command()
def top(
    n: Annotated[int, typer.Argument(help="How many.")] = 10,
    json: Json = False,
) -> None:
    """List the users who were refused most often in the last 24 hours."""
    found = _run(lambda control: control.top(n))
    _show(found, json, lambda: printing.say(printing.listing(found, "nobody was refused")))


@app.command()
def stats(
    hours: Annotated[int, typer.Argument(help="How many, up to now.")] = 24, json: Json = False
) -> None:
    """Show decisions by hour, rule and outcome, over all instances."""
    found = _run(lambda control: control.statistics(hours))
    _show(found, json, lambda: printing.say(printing.listing(found, "nothing was decided")))


@app.command("set")
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
        _fail(ConfigError("--default undoes all changes: give no other option and no limit"))
    found = _run(
        lambda control: control.preview(name, limit, shadow=shadow, off=off, default=default)
    )
    before, after = printing.limit_of(found.before), printing.limit_of(found.after)
    running = printing.amount(found.instances, "instance")
    _confirm([f"{name}: {before} -> {after}, on {running}"], "Change?", yes, json)

    async def act(control: Control) -> Overrides:
        if default:
            return await control.changes.unset_rule(name, if_version=found.version)
        return await control.set_rule(name, limit, shadow=shadow, off=off, if_version=found.version)

    _finish(act, json)


@app.command()
def penalty(
    after: Annotated[
        str | None, typer.Argument(help="Refused attempts, such as 10/minute.")
    ] = None,
    ban: Annotated[str, typer.Argument(help="The length of the ban.")] = "15m",
    grows: Annotated[
        bool, typer.Option("--grows", help="Each further ban is twice as long.")
    ] = False,
    default: Annotated[bool, typer.Option("--default", help="Undo the change.")] = False,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Change or add the ban for users who keep sending while they are refused."""
    if default == (after is not None):
        _fail(ConfigError("give either a penalty, such as 10/minute 15m, or --default"))
    words = "as without live changes" if default else f"{ban} after {after}"
    if after is not None:
        _checked(penalty_of, {"after": after, "ban": ban})
    _change(
        f"penalty: {words}",
        lambda control, version: control.changes.set_penalty(
            after, ban, if_version=version, **({"grows": True} if grows else {})
        ),
        yes,
        json,
    )


@app.command(context_settings=_IDS)
def exempt(
    id_: Annotated[int, typer.Argument(metavar="ID", help="The id of a user or a chat.")],
    undo: Annotated[
        bool, typer.Option("--not", help="Limit them, even if the bot exempts them.")
    ] = False,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Exempt a user or a chat from all limits."""
    _checked(_check_id, id_)
    _change(
        f"{id_}: {'not exempt' if undo else 'exempt'} from all limits",
        lambda control, version: control.changes.set_exempt(id_, not undo, if_version=version),
        yes,
        json,
    )


@app.command()
def pause(
    how_long: Annotated[str, typer.Argument(help="For example 1h; at most a day.")],
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Switch all limits off for some time."""
    _checked(check_pause, how_long)
    _change(
        f"all limits off for {how_long}",
        lambda control, version: control.changes.pause(how_long, if_version=version),
        yes,
        json,
    )


@app.command()
def resume(yes: Yes = False, json: Json = False) -> None:
    """Switch all limits on again."""
    _change(
        "all limits on",
        lambda control, version: control.changes.resume(if_version=version),
        yes,
        json,
    )


@app.command()
def history(json: Json = False) -> None:
    """List the versions to roll back to."""
    found = _run(lambda control: control.changes.history())
    rows = [
        (each.version, printing.moment(each.at), each.by, each.what, printing.changes(each))
        for each in found
    ]
    head = ("VERSION", "WHEN", "BY", "WHAT", "CHANGES")
    _show(found, json, lambda: printing.say(printing.table(head, rows) if rows else "no changes"))


@app.command()
def audit(json: Json = False) -> None:
    """List the last 200 actions of operators."""
    found = _run(lambda control: control.audit())
    rows = [(printing.moment(e.at), e.by, e.what, e.before, e.after) for e in found]
    head = ("WHEN", "BY", "WHAT", "BEFORE", "AFTER")
    _show(found, json, lambda: printing.say(printing.table(head, rows) if rows else "nothing"))


@app.command()
def rollback(
    version: Annotated[
        int | None, typer.Argument(help="0 drops all changes; by default the previous.")
    ] = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Return to an earlier version."""
    found = _run(lambda control: control.changes.preview_rollback(version))
    live, target = found.live, found.target
    now = f"version {live.version} is in force: {printing.changes(live)}"
    if found.is_invalid:
        now = f"the live document is invalid; version {live.version} stays in force"
    words = (
        now,
        f"roll back to version {target.version}: {printing.changes(target)}",
    )
    _confirm(words, "Roll back?", yes, json)
    _finish(lambda control: control.changes.rollback(target.version, if_version=live.version), json)


@app.command()
def health(json: Json = False) -> None:
    """Check that limits are enforced, for a container's health check: status 0 or 1."""
    found = _run(lambda control: control.health())
    _show(found, json, lambda: printing.say(printing.health(found)))
    if not found.ok:
        raise typer.Exit(NO)


@app.command()
def watch(
    every: Annotated[float, typer.Option(help="Seconds.", min=0.1)] = 2.0,
    count: Annotated[
        int | None, typer.Option(help="How many times; by default forever.", min=1)
    ] = None,
    json: Json = False,
) -> None:
    """Keep showing limits, instances and health; with --json one line each time."""

    async def look(control: Control) -> tuple[HealthView, ConfigView | None]:
        found = await control.health()
        try:
            return found, await control.config()
        except StorageError:  # it may come back
            return found, None

    screen = None if json else Screen(console=printing.console(), auto_refresh=False)
    try:
        if screen is not None:
            screen.start()
        for number in range(count or sys.maxsize):
            if number:
                time.sleep(every)
            found, now = _run(look)
            if screen is None:
                printing.print_json({"health": found, "config": now})
                sys.stdout.flush()
            else:
                parts = [] if now is None else printing.config(now)
                shown = parts[: -1 if now is not None and now.settings else None]
                screen.update(Group(printing.health(found), *shown), refresh=True)
    except KeyboardInterrupt:
        pass
    finally:
        if screen is not None:
            screen.stop()


@app.command()
def check(file: Annotated[str, typer.Argument(help="A limits file.")], json: Json = False) -> None:
    """Check a limits file: status 2, and one line that names the mistake, if there is one."""
    try:
        found = read_limits_file(file)
        if found.notices:
            Notices(found.notices)
    except RateLimitError as error:
        _fail(error)
    amount = printing.amount
    parts = [amount(len(found.rules or ()), "rule"), amount(len(found.limits), "named limit")]
    parts += [f"{len(found.exempt or ())} exempt", amount(len(found.notices), "notice")]
    parts += ["a penalty"] if found.penalty else []
    parts += ["outgoing budgets"] if found.outgoing else []
    _show({"file": file, "ok": True}, json, lambda: printing.say(f"{file}: {', '.join(parts)}"))


@app.command()
def clear(
    everything: Annotated[
        bool,
        typer.Option("--everything", help="Also delete live limits, history, audit and logouts."),
    ] = False,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Delete every count under the prefix; asks twice."""
    prefix = _settings().redis_key_prefix
    what = "everything" if everything else "every count and ban"
    preview = f"delete {what} under {prefix}:ratelimit:, for all users and chats"
    _confirm([preview], "Clear?", yes, json)
    if not yes and _answer(f"Type the prefix ({prefix}) to continue: ") != prefix:
        _not_confirmed()
    found = _run(lambda control: control.clear(everything=everything))
    _show({"keys": found}, json, lambda: printing.say(f"{printing.amount(found, 'key')} deleted"))


def _change(
    words: str,
    act: Callable[[Control, int], Awaitable[Overrides]],
    yes: bool,
    json: bool,
) -> None:
    """Preview a change, ask, make it, and say on how many instances it is in force."""
    now = _run(lambda control: control.config())
    if now.problem:
        _fail(ConfigError(now.problem))
    told = f"{words}, on {printing.amount(len(now.instances), 'instance')}"
    _confirm([told], "Change?", yes, json)
    _finish(lambda control: act(control, now.live.version), json)


def _finish(act: Callable[[Control], Awaitable[Overrides]], json: bool) -> None:
    async def done(control: Control) -> tuple[int, int, int]:
        version = (await act(control)).version
        instances = await control.wait_for(version)
        return version, sum(each.version >= version for each in instances), len(instances)

    version, obeying, running = _run(done)
    text = f"version {version} is in force on {obeying} of {printing.amount(running, 'instance')}"
    if not running:
        text = (
            f"version {version} is written; {printing.nobody_reports(_settings().redis_key_prefix)}"
        )
    found = {"version": version, "obeying": obeying, "instances": running}
    _show(found, json, lambda: printing.say(text))


def _checked(check: Callable[[_T], object], value: _T) -> None:
    """Report a mistake before the confirmation."""
    try:
        check(value)
    except ConfigError as error:
        _fail(error)


def _check_id(id_: int) -> None:
    if not 0 < abs(id_) <= LARGEST_ID:  # a typo would ban nobody, and say that it did
        raise ConfigError(f"{id_} is not the id of a user or a chat, such as 42 or -100123")


def _operator() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container a user may be a number without a name
        return str(os.getuid())


def _run(act: Callable[[Control], Awaitable[_T]]) -> _T:
    async def with_control() -> _T:
        control = Control.from_settings(_settings(), f"{_operator()}@{socket.gethostname()}")
        try:
            return await act(control)
        finally:
            await control.close()

    try:
        return asyncio.run(with_control())
    except RateLimitError as error:
        _fail(error)


def _settings() -> Settings:
    try:
        settings = Settings()
        if not settings.uses_redis:
            raise ConfigError(
                "without Redis each bot counts in its own process, which this command cannot read: "
                "set REDIS_URL or REDIS_HOST as for the bot"
            )
    except ConfigError as error:
        _fail(error)
    return settings


def _subject(user: int, chat: int | None, topic: int | None, bot: int | None) -> Subject:
    _checked(_check_id, user)
    if user < 0:
        return Subject(None, user, topic, bot)
    return Subject(user, user if chat is None else chat, topic, bot)


def _banned(user: int, chat: int | None) -> Subject:
    """A user is banned everywhere, unless a chat is named."""
    _checked(_check_id, user)
    return Subject(chat=user) if user < 0 else Subject(user=user, chat=chat)


def _show(value: Any, json: bool, as_text: Callable[[], None]) -> None:
    if json:
        printing.print_json(value)
    else:
        as_text()


def _confirm(preview: Sequence[RenderableType], question: str, yes: bool, json: bool) -> None:
    """Show what will be done, and ask. With `--json`, standard output is for the result alone."""
    if not (json and yes):
        printing.say(*preview, stderr=json)
    if yes:
        return
    if _answer(f"{question} [y/N] ").lower() not in {"y", "yes"}:
        _not_confirmed()


def _answer(question: str) -> str:
    """What the operator types; empty at the end of input. Standard output is for results only."""
    typer.echo(question, nl=False, err=True)
    # Python has no sys.stdin at all if the process was started with a closed one.
    return sys.stdin.readline().strip() if sys.stdin is not None else ""


def _not_confirmed() -> NoReturn:
    typer.echo("not confirmed: nothing was changed (use --yes to skip the question)", err=True)
    raise typer.Exit(NOT_CONFIRMED)


def _fail(error: RateLimitError) -> NoReturn:
    typer.echo(f"error: {error}", err=True)
    raise typer.Exit(next(status for kind, status in _STATUSES if isinstance(error, kind)))

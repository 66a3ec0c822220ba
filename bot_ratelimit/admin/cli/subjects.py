"""Commands about one user or chat: what is left, and bans."""

from __future__ import annotations

from typing import Annotated

import typer

from bot_ratelimit.admin.cli import printing
from bot_ratelimit.admin.cli.dialogue import confirm, show_result
from bot_ratelimit.admin.cli.options import (
    IDS,
    Bot,
    Chat,
    Json,
    OneChat,
    Topic,
    User,
    Yes,
    subject_of,
    target_of,
)
from bot_ratelimit.admin.cli.session import NO, checked, run
from bot_ratelimit.admin.views import who
from bot_ratelimit.limiter.arguments import check_ban_length, check_text

commands = typer.Typer()


@commands.command(context_settings=IDS)
def show(
    user: User, chat: Chat = None, topic: Topic = None, bot: Bot = None, json: Json = False
) -> None:
    """Show what a user has left of every rule; charges nothing."""
    found = run(lambda control: control.show(subject_of(user, chat, topic, bot)))
    show_result(found, json, *printing.subject(found))


@commands.command("try", context_settings=IDS)
def try_(
    user: User,
    chat: Chat = None,
    topic: Topic = None,
    bot: Bot = None,
    rule: Annotated[str | None, typer.Option(help="A handler's own limit, by name.")] = None,
    json: Json = False,
) -> None:
    """Test whether a user's update would be handled now: exit status 0 or 1; charges nothing."""
    found = run(lambda control: control.try_(subject_of(user, chat, topic, bot), rule))
    value = {"allowed": True} if found is None else found
    show_result(value, json, printing.decision(found))
    if found is not None and not found.allowed:
        raise typer.Exit(NO)


@commands.command(context_settings=IDS)
def forgive(
    user: User,
    rules: Annotated[
        list[str] | None, typer.Option("--rule", help="Only this rule; can be repeated.")
    ] = None,
    chat: Chat = None,
    topic: Topic = None,
    bot: Bot = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Delete the counts of a user, of all rules by default, and lift a ban by a penalty."""
    subject = subject_of(user, chat, topic, bot)
    before = run(lambda control: control.show(subject))
    confirm("Forgive?", yes, json, *printing.subject(before))
    found = run(lambda control: control.forgive(subject, rules or ()))
    lines = [f"forgiven: {', '.join(found)}" if found else "there was nothing to forgive"]
    if before.banned is not None and not before.banned.key:
        still = printing.ban(before.banned)
        lines.append(f"still {still}; only `bot-ratelimit unban` lifts that")
    show_result({"forgiven": found}, json, *lines)


@commands.command(context_settings=IDS)
def ban(
    user: User,
    how_long: Annotated[str, typer.Argument(help="A period, for example 1h, or forever.")],
    reason: Annotated[str, typer.Argument(help="Why, for the other operators.")] = "",
    chat: OneChat = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Refuse everything from a user or a chat, on every instance."""
    subject = target_of(user, chat)
    checked(check_ban_length, None if how_long == "forever" else how_long)
    checked(lambda text: check_text("reason", text), reason)
    length = how_long if how_long == "forever" else f"for {how_long}"
    words = f"ban {who(subject)} {length}" + (f": {reason}" if reason else "")
    confirm("Ban?", yes, json, words)
    found = run(lambda control: control.ban(subject, how_long, reason))
    show_result(found, json, f"banned {printing.ban_length(found)}")


@commands.command(context_settings=IDS)
def unban(
    user: User, chat: OneChat = None, bot: Bot = None, yes: Yes = False, json: Json = False
) -> None:
    """Lift the ban of a user or a chat, also one by a penalty; --chat for a ban in one chat."""
    subject = target_of(user, chat)._replace(bot=bot)
    confirm("Unban?", yes, json, f"unban {who(subject)}")
    found = run(lambda control: control.unban(subject))
    text = "unbanned" if found else "was not banned"
    if not found and subject.chat is None:
        text += "; for a ban in one chat, add --chat"
    show_result({"unbanned": found}, json, text)


@commands.command()
def bans(
    limit: Annotated[int, typer.Option(help="How many bans, up to 1000.")] = 100,
    offset: Annotated[int, typer.Option(help="How many bans to skip.")] = 0,
    json: Json = False,
) -> None:
    """List all bans with their end, operator and reason; those that end first come first."""
    found = run(lambda control: control.bans(offset, limit))
    show_result(found, json, printing.bans(found))

"""The application: all commands, in the order of `--help`."""

from __future__ import annotations

import typer

from bot_ratelimit.admin.cli import changes, overview, subjects, upkeep

app = typer.Typer(
    help="Show and change the limits of a running bot; forgive and ban its users. Reads the same "
    "environment and .env as the bot.",
    epilog="Exit status: 0 done; 1 the answer is no; 2 a mistake in the command or configuration; "
    "3 Redis cannot be reached; 4 somebody else changed the limits in the meantime; "
    "5 not confirmed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _group in (overview, subjects, changes, upkeep):
    app.add_typer(_group.commands)

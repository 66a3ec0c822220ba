"""Dialogue: what the operator sees, and is asked before something changes."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import typer
from rich.console import RenderableType

from bot_ratelimit.admin.cli import printing
from bot_ratelimit.admin.cli.session import NOT_CONFIRMED


def show_result(value: Any, json: bool, *lines: RenderableType) -> None:
    """Print a value for programs, or these lines and tables for people."""
    if json:
        printing.print_json(value)
    else:
        printing.say(*lines)


def confirm(question: str, yes: bool, json: bool, *preview: RenderableType) -> None:
    """Show what would be done, and end the command unless the operator agrees.

    With `--json`, standard output is for the result alone.
    """
    if not (json and yes):
        printing.say(*preview, stderr=json)
    if not yes and ask(f"{question} [y/N] ").lower() not in {"y", "yes"}:
        stop()


def ask(question: str) -> str:
    """What the operator types; empty at the end of input. Standard output is for results only."""
    typer.echo(question, nl=False, err=True)
    # Python has no sys.stdin at all if the process was started with a closed one.
    return sys.stdin.readline().strip() if sys.stdin is not None else ""


def stop() -> NoReturn:
    """End the command before it has changed anything."""
    typer.echo("not confirmed: nothing was changed (use --yes to skip the question)", err=True)
    raise typer.Exit(NOT_CONFIRMED)

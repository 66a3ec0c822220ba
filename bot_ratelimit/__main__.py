"""The command `bot-ratelimit`, also `python -m bot_ratelimit`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command; without the extra `cli`, say how to install it."""
    try:
        from bot_ratelimit.admin.cli import app
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.exit(f"bot-ratelimit needs {error.name}: pip install 'bot_ratelimit[cli]'")
    if sys.stdout is None:
        sys.exit("error: standard output is closed")
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # else a test has put something else there
            reconfigure(errors="backslashreplace")
    try:
        try:
            app(prog_name="bot-ratelimit")
        finally:
            sys.stdout.flush()
    except OSError as error:
        # What is still buffered would fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.stderr.write(f"error: cannot write the result: {error.strerror or error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()

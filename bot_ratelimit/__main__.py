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
        print("error: standard output is closed", file=sys.stderr)  # noqa: T201 - of a command
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # else a test has put something else there
            reconfigure(errors="backslashreplace")
    try:
        try:
            app(prog_name="bot-ratelimit")
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):  # typer and rich would exit with 1
                raise end.__context__ from None
            raise
        finally:
            sys.stdout.flush()
    except OSError as error:
        # What is still buffered would fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.stderr.write(f"error: cannot write the result: {error.strerror or error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()

"""`python -m example_bot.demo`: what the package does, in about 30 seconds, without Telegram."""

import sys


def main() -> int:
    """Run the demo and return its exit status."""
    try:
        # Imported here because the import takes a second or two, in which the user may press
        # Ctrl-C.
        from example_bot.demo.run import run_demo

        return run_demo()
    except KeyboardInterrupt:
        print("Stopped before the end: no results.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

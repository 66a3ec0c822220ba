"""`python -m example_bot.demo`: what the package does, in about 20 seconds, without Telegram."""

import sys


def main() -> int:
    """Perform the demo, and return its exit status."""
    try:
        # Imported here, because that takes a second or two in which Ctrl-C may come, too.
        from example_bot.demo.performance import perform

        return perform()
    except KeyboardInterrupt:
        print("Stopped before the end: nothing is claimed.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

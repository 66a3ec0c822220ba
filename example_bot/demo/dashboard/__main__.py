"""`python -m example_bot.demo.dashboard`: the page beside a busy bot, until Ctrl-C."""

import sys


def main() -> int:
    """Show it until it is stopped, and return the exit status: 0, unless it could not begin."""
    try:
        # Imported here, because that takes a second or two in which Ctrl-C may come, too.
        from example_bot.demo.dashboard.show import show

        return show()
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())

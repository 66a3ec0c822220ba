"""`python -m example_bot.demo.dashboard`: the page for operators of a busy bot, until Ctrl-C."""

import sys


def main() -> int:
    """Run the dashboard until it is stopped; the exit status is 0, unless it could not start."""
    try:
        # Imported here, because it takes a second or two, and Ctrl-C must work during that time.
        from example_bot.demo.dashboard.show import show

        return show()
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())

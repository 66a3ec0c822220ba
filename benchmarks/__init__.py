"""This package and its peers side by side: `python -m benchmarks`."""

import sys

# Everything is measured as `pip install` leaves it, on redis-py's own parser: hiredis, its parser
# in C, is no dependency of anybody here. None in this place bars an import.
sys.modules["hiredis"] = None  # type: ignore[assignment] # see above

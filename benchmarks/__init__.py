"""This package and its peers side by side: `python -m benchmarks`."""

import os
import sys

# Everything is measured as `pip install` leaves it, on redis-py's own parser, unless a process is
# told otherwise; what measures the difference is clients.py. None in this place bars an import.
if not os.environ.get("BENCHMARK_WITH_HIREDIS"):
    sys.modules["hiredis"] = None  # type: ignore[assignment] # see above

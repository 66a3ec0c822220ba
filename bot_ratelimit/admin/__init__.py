"""For operators: health and metrics, inspect, forgive, ban, and change limits at run time."""

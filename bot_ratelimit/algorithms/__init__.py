"""State and time in, verdict out: each algorithm, without I/O and without a clock."""

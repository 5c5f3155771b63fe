"""A fixed part of what `make fuzz` runs without end, and whether the fuzzer finds faults."""

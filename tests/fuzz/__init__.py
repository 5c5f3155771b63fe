"""Random problems against the float64 reference, with guard pages around every tensor.

`make fuzz N=20000 SEED=1` runs them for as long as one likes; test_fuzz.py a fixed number.
docs/testing.md says how to read a failure.
"""

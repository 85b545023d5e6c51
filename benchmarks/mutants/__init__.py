"""How many small faults in the code the tests see; ``python -m benchmarks.mutants``."""

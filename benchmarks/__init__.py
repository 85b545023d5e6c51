"""How fast the pipeline's own work is; ``python -m benchmarks``. On one core, so that numbers compare."""

"""``python -m triangulation_pipeline.cli``."""

from triangulation_pipeline.cli import main

main(prog_name="triangulation")

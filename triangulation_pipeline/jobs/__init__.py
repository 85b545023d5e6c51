"""Training jobs: their states, which job a run continues, whether its worker lives, and what each epoch leaves."""

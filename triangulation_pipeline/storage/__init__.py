"""What outlives a run: the database (datasets, jobs, metrics, models) and the object store (checkpoints, plots)."""

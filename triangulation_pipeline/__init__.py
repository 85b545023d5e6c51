"""A Dagster asset pipeline from the description of an SDR receiver network to a registered, calibrated locator."""

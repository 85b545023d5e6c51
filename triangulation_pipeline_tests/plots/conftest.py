"""The comparisons and samples that are drawn are those of the evaluation's tests."""

from triangulation_pipeline_tests.evaluation.conftest import by_level, by_time, default_batch, handmade, rss_batch

__all__ = ["by_level", "by_time", "default_batch", "handmade", "rss_batch"]

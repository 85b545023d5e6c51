"""Positions with the covariances of their errors, which every locator returns, and statistics of errors."""

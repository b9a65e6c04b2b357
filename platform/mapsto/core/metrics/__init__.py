"""Metrics in numpy: each computes from all rows at once, in row order. No task, no torch."""

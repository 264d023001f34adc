"""Metrics: a predictor over a data set."""

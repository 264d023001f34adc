"""Metrics of a predictor on a data set."""

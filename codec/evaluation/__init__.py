"""Evaluation: systems, metrics, statistics and the report; ``codec-evaluate`` and ``codec-compare``."""

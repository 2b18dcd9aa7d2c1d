"""Metrics, win rates, ratings, agreement, the gate."""

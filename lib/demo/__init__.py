"""Synthetic demo data: a small product catalog, long-tailed and with noisy labels, to run the project without data."""

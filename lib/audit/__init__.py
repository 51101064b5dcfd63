"""Audit of a data set: unreadable and suspicious images, duplicates, leaks between splits, contradictory labels."""

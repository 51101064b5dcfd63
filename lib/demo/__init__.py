"""A small drawn catalogue, long-tailed and noisy like a real one: something to run before there is data."""

"""Looks at every image of a data set: what is unreadable, suspicious, or there twice."""

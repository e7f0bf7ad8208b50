"""Data of one's own: which files there are, what a file of any kind holds, and a cache of what was read."""

"""Slow, naive, independent answers to compare the package with. Nothing here imports the code it checks."""

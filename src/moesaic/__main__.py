"""Enables `python -m moesaic`."""

from moesaic.cli import main

main()

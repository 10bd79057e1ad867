"""Seeing beforehand: what a run will give, what it will need, and where the result will fit."""

"""Measures of a model, packed or not."""

"""Packed models inside transformers."""

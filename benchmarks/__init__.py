"""Measurements, one file a question. Each prints the machine and units; none is a test."""

"""Tests of the kernel backends."""

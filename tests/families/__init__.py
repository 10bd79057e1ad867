"""Tests of the architectures."""

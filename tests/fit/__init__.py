"""Tests of calibrating and training skipping policies."""

"""Tests of the skipping policies."""

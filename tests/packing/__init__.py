"""Tests of the packed format and of writing it."""

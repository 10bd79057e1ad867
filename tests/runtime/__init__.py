"""Tests of packed models inside transformers."""

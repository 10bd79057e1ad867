"""Tests of promises that concern the whole package."""

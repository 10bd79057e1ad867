"""Tests of moesaic; they mirror `src/moesaic` file by file."""

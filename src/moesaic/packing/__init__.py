"""The packed format: bits, layout, files."""

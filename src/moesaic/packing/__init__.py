"""The packed format: bits, layout, files."""

FORMAT_VERSION = 1
MANIFEST = "moesaic.json"  # what a packed folder says about itself

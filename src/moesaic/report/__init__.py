"""Record files in, one self-contained HTML page and SVG figures out. Imports no torch and opens no model."""

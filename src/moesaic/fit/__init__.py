"""Fits a skipping policy to a packed model: thresholds from calibration text, mask routers by training."""

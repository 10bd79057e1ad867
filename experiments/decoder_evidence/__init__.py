"""What decides how many bits an expert of a decoder needs: every measure against the truth, and the ablations."""

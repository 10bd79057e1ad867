"""Quality and share of expert activations of every skipping policy."""

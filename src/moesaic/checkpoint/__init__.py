"""Files of checkpoints: the only place that knows file and tensor names."""

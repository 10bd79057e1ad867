"""Train small mixture-of-experts language models from scratch."""

"""Every allocation rule on one table: one program, one quantizer at a time, equal bytes, held-out text."""

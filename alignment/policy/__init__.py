"""Training the policy: one file per method, and the mathematics as free functions."""

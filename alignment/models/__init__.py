"""Load any causal language model, the embedded default, and adapters."""

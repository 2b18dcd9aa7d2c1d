"""Smaller models: quantised weights and GGUF files, and how far they agree with what they were made from."""

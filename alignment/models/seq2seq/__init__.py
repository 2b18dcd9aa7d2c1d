"""Encoder-decoders (T5, BART) as policies: an encoder reads the prompt, a decoder writes the answer."""

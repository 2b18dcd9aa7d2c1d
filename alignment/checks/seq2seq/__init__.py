"""What is wrong with a recipe whose model is an encoder with a decoder (T5, BART), and what was seen of it."""

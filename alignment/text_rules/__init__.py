"""How a conversation is written for models that have no chat template: encoders, encoder-decoders."""

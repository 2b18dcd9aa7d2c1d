"""The shapes of the models that benchmarks make: a small one, and SmolLM2's."""

SHAPES = {
    "7m": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8},
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
             "num_key_value_heads": 3},
}  # fmt: skip

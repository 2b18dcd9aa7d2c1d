"""The reward model and reward functions."""

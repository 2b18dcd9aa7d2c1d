"""The settings of rewards."""

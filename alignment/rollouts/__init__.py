"""Sampling strategies and the engines that run them."""

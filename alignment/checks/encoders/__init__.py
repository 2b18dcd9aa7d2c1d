"""What is wrong with the encoders that stages start from."""

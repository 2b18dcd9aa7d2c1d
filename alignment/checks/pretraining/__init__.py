"""What is wrong with a recipe that pretrains a model, and what can be known of one that is yet to be made."""

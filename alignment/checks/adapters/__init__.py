"""What is wrong with a recipe's adapters, and with the base that they are on."""

"""What is wrong with stages that make models smaller, and with models from outside that teach them."""

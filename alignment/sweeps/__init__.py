"""Many variants of a recipe: which there are, which are stopped early, and how they compare on held-out prompts."""

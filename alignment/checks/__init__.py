"""Everything wrong with a recipe, its data and its model, known before anything trains."""

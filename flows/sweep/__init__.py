"""Many variants of a recipe: each a run like any other, side by side where they fit, compared at the end."""

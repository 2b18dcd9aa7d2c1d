"""Simulated raters as a recipe names them."""

from alignment.recipe.base import Count, NotNegative, Settings


class SimulatedRaters(Settings):
    """Programs that follow a written rubric, with noise. Always called simulated wherever they show."""

    rubric: str
    """A YAML file with the rubric, relative to the recipe."""
    count: Count = 3
    """Raters; each votes on every comparison."""
    noise: NotNegative = 0.5
    """Standard deviation added to a rater's score of each response, in rubric points."""
    tie_margin: NotNegative = 0.25
    """Two scores that differ by less are a tie, in rubric points."""

"""Simulated raters as a recipe names them."""

from alignment.recipe.base import Count, NotNegative, Settings


class SimulatedRaters(Settings):
    """Programs that follow a written rubric, with noise. Always called simulated wherever they show."""

    rubric: str  # a YAML file, relative to the recipe: see alignment/preferences/rubric.py
    count: Count = 3
    noise: NotNegative = 0.5  # standard deviation added to a rater's score of each response, in rubric points
    tie_margin: NotNegative = 0.25  # two scores nearer than this are a tie

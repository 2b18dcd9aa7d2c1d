"""The kinds of adapters beside low-rank ones, and the choice of a model's own weights that are trained."""

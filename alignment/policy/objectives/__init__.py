"""Losses of policy optimisation, a file a family; :mod:`alignment.policy.objectives.table` names them."""

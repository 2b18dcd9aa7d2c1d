"""Which trackers show a run's curves while it trains."""

from typing import Literal, TypeAlias

TrackerName: TypeAlias = Literal["mlflow", "tensorboard", "wandb"]
TRACKERS: dict[TrackerName, str] = {"mlflow": "mlflow", "tensorboard": "tensorboardX", "wandb": "wandb"}
"""The package that each of them needs."""

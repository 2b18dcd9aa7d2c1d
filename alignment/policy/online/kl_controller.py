"""The coefficient of the KL penalty: fixed, or steered towards a target."""

from dataclasses import dataclass

LIMIT = 0.2  # of the proportional error (Ziegler et al. 2019, section 2.2)


@dataclass(slots=True)
class KlController:
    """``coefficient`` weighs the KL penalty. ``target`` None keeps it fixed.

    With a target, each step multiplies it by ``1 + clip(kl / target - 1, ±0.2) * episodes / horizon``.
    """

    coefficient: float
    target: float | None = None
    horizon: float = 10_000

    def update(self, kl: float, episodes: int) -> None:
        """Takes in the mean KL of ``episodes`` answers, in nats per answer."""
        if self.target is None:
            return
        error = min(max(kl / self.target - 1, -LIMIT), LIMIT)
        self.coefficient *= 1 + error * episodes / self.horizon

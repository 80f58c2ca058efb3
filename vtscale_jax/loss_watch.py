"""Watches the loss of every step, and stops a run that has gone wrong."""

import math
from collections import deque
from statistics import median

import numpy as np

HISTORY = 20  # steps before a spike can be told from the noise of the start
# A normal sample's median absolute deviation, as a share of its standard deviation.
MAD_OF_NORMAL = 0.6745


class TrainingStopped(ValueError):
    """A loss that is not finite, or far above those before it, and where."""

    def __init__(self, message: str, step: int, reason: str):
        super().__init__(message)
        self.step = step
        self.reason = reason


def check_loss(step: int, loss: float | np.floating) -> None:
    """Raises TrainingStopped, naming the step, unless the loss is a finite number."""
    if not math.isfinite(loss):
        raise TrainingStopped(
            f"loss is {float(loss)} at step {step}, expected a finite number. Look at "
            "grad_norm in metrics.jsonl just before it, and start anew in another "
            "--workdir with a lower --config.optim.learning_rate or a longer "
            "--config.optim.warmup.",
            step,
            "not finite",
        )


class LossWatch:
    """Sees the loss of every step, in order.

    A spike is a loss of more than `spike` standard deviations above the median of the
    last `window` steps, and of more than twice that median. The deviation is a robust
    one, 1.48 times the median absolute deviation; `spike` 0 looks for none.
    """

    def __init__(self, *, spike: float | int, window: int):
        if spike < 0 or window < HISTORY:
            raise ValueError(
                f"stop.spike is {spike} and stop.window {window}, expected at least 0 "
                f"(no limit) and {HISTORY} steps (--config.stop.spike=...)"
            )
        self._spike = spike
        self._losses: deque[float] = deque(maxlen=window)

    def see(self, step: int, loss: float, grad_norm: float) -> None:
        """Raises TrainingStopped when this step's numbers end the run."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise TrainingStopped(
                f"loss is {loss:g} and its gradient's norm {grad_norm:g} at step "
                f"{step}, expected finite numbers: every later step would be wasted",
                step,
                "not finite",
            )
        limit = self.limit()
        if limit is not None and loss > limit:
            raise TrainingStopped(
                f"loss is {loss:g} at step {step}, expected at most {limit:g}: the "
                f"median of the last {len(self._losses)} steps is "
                f"{median(self._losses):g}, and stop.spike is {self._spike:g}",
                step,
                "spike",
            )
        self._losses.append(loss)

    def limit(self) -> float | None:
        """The loss above which the next step counts as a spike; None while there is
        none."""
        if not self._spike or len(self._losses) < HISTORY:
            return None
        middle = median(self._losses)
        spread = median(abs(loss - middle) for loss in self._losses) / MAD_OF_NORMAL
        return max(middle + self._spike * spread, 2 * middle)

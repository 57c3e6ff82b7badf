"""How the learning rate goes up and down over a training run."""

import math
from collections.abc import Sequence

from worker.training.recipe import Schedule

# What a drop leaves of the learning rate.
DROP = 0.1


def learning_rate_factor(
    step: int, steps: int, warmup_steps: float, schedule: Schedule, drops: Sequence[float]
) -> float:
    """Return what the learning rate of ``step``, the first being 0, is multiplied by.

    It rises in equal parts during ``warmup_steps``. Then it follows, over the rest of all
    ``steps``, half a cosine from 1 to 0 (Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5,
    without restarts), stays at 1 (``constant``), or falls to a tenth after each share of all steps
    in ``drops`` (``steps``).
    """
    if step < warmup_steps:
        return min((step + 1) / warmup_steps, 1.0)
    if schedule == "constant":
        return 1.0
    if schedule == "steps":
        return DROP ** sum(step >= share * steps for share in drops)
    done = (step - warmup_steps) / max(steps - warmup_steps, 1.0)
    return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))

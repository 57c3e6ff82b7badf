"""How the learning rate goes up and down over a training run."""

import math


def learning_rate_factor(step: int, steps: int, warmup_steps: float, *, cosine: bool) -> float:
    """Return what the learning rate of ``step``, the first being 0, is multiplied by.

    It rises in equal parts during ``warmup_steps`` and then, over the rest of all ``steps``,
    follows half a cosine from 1 to 0 (Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5,
    without restarts) or stays at 1.
    """
    if step < warmup_steps:
        return min((step + 1) / warmup_steps, 1.0)
    if not cosine:
        return 1.0
    done = (step - warmup_steps) / max(steps - warmup_steps, 1.0)
    return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))

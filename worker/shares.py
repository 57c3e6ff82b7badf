"""What share of a job's progress each of its stages is.

By the seconds that `prepare` foresees from the network, the images and the epochs; until then, and
for jobs that an older release prepared, by the seconds that stages usually take, roughly.
"""

import math
from collections.abc import Mapping, Sequence

# Where the progress of a job, 0 to 1, stands when a stage begins, and when it ends.
Shares = Mapping[str, tuple[float, float]]

_CALIBRATED: Shares = {
    "prepare": (0.0, 0.05),
    "calibrate": (0.05, 0.75),
    "pack": (0.75, 0.78),
    "evaluate": (0.78, 0.99),
    "publish": (0.99, 1.0),
}

# However few the epochs, each is many passes over the training images.
_FINE_TUNED: Shares = {
    "prepare": (0.0, 0.02),
    "calibrate": (0.02, 0.12),
    "fine_tune": (0.12, 0.93),
    "pack": (0.93, 0.94),
    "evaluate": (0.94, 0.99),
    "publish": (0.99, 1.0),
}

_LEAST_SHARE = 0.003

# Of the stage fine_tune, what is left for the step after its last epoch.
_FINISH = 0.03


def stage_shares(*, fine_tuned: bool) -> Shares:
    """Return the shares of the stages that a job has, in their order."""
    return _FINE_TUNED if fine_tuned else _CALIBRATED


def foreseen_shares(usual: Shares, seconds: Mapping[str, float]) -> Shares:
    """Return the shares of stages that will take so many ``seconds`` each, in the usual order.

    The first stage, during which they are foreseen, keeps its usual share, and the last one, which
    takes no time, ends at 1. Without useful figures the shares stay as they are.
    """
    first, *others = usual
    known = [seconds.get(stage, 0.0) for stage in others]
    if not all(math.isfinite(one) and one >= 0 for one in known) or sum(known) <= 0:
        return usual
    begin = usual[first][1]
    # No stage is nothing at all: its progress has to be seen.
    widths = [max(one / sum(known), _LEAST_SHARE) for one in known]
    ends = [begin + (1 - begin) * sum(widths[: n + 1]) / sum(widths) for n in range(len(widths))]
    ends[-1] = 1.0
    begins = [begin, *ends[:-1]]
    return {first: usual[first], **dict(zip(others, zip(begins, ends, strict=True), strict=True))}


def step_parts(names: Sequence[str], seconds: Mapping[str, float]) -> list[tuple[float, float]]:
    """Return where a stage stands before and after each of its steps.

    Steps weigh as many ``seconds`` as they are foreseen to take, those without as much as the mean.
    """
    known = [seconds[name] for name in names if seconds.get(name, 0.0) > 0]
    mean = sum(known) / len(known) if known else 1.0
    weights = [seconds.get(name) or mean for name in names]
    ends = [sum(weights[: n + 1]) / sum(weights) for n in range(len(weights))]
    return list(zip([0.0, *ends[:-1]], ends, strict=True))


def epoch_part(epoch: int, epochs: int) -> tuple[float, float]:
    """Return where the stage fine_tune stands before and after ``epoch`` (1 to ``epochs``)."""
    width = (1 - _FINISH) / epochs
    return (epoch - 1) * width, epoch * width


def finish_part() -> tuple[float, float]:
    """Return where the stage fine_tune stands before and after its last step."""
    return 1 - _FINISH, 1.0

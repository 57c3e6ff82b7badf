"""What share of a job's progress each of its stages is: by their usual seconds, roughly."""

from collections.abc import Mapping

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

# Of the stage fine_tune, what is left for the step after its last epoch.
_FINISH = 0.03


def stage_shares(*, fine_tuned: bool) -> Shares:
    """Return the shares of the stages that a job has, in their order."""
    return _FINE_TUNED if fine_tuned else _CALIBRATED


def epoch_part(epoch: int, epochs: int) -> tuple[float, float]:
    """Return where the stage fine_tune stands before and after ``epoch`` (1 to ``epochs``)."""
    width = (1 - _FINISH) / epochs
    return (epoch - 1) * width, epoch * width


def finish_part() -> tuple[float, float]:
    """Return where the stage fine_tune stands before and after its last step."""
    return 1 - _FINISH, 1.0

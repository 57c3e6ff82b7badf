"""How the stages share a job's progress."""

import pytest

from worker.pipeline import STAGES
from worker.shares import (
    epoch_part,
    finish_part,
    foreseen_shares,
    stage_shares,
    step_parts,
)


@pytest.mark.parametrize("fine_tuned", [False, True])
def test_the_stages_follow_each_other_without_a_gap(fine_tuned: bool) -> None:
    shares = stage_shares(fine_tuned=fine_tuned)
    expected = [*STAGES, "publish"]
    if not fine_tuned:
        expected.remove("fine_tune")
    assert list(shares) == expected
    ends = [0.0]
    for begin, end in shares.values():
        assert begin == ends[-1] < end
        ends.append(end)
    assert ends[-1] == 1.0


@pytest.mark.parametrize("epochs", [1, 3, 1000])
def test_epochs_are_equally_long_and_leave_room_for_the_last_step(epochs: int) -> None:
    parts = [epoch_part(epoch, epochs) for epoch in range(1, epochs + 1)]
    assert parts[0][0] == 0.0
    assert [begin for begin, _ in parts[1:]] == [end for _, end in parts[:-1]]
    assert parts[-1][1] == pytest.approx(finish_part()[0])
    assert finish_part()[1] == 1.0


@pytest.mark.parametrize("fine_tuned", [False, True])
def test_stages_get_the_shares_of_the_seconds_that_are_foreseen(fine_tuned: bool) -> None:
    usual = stage_shares(fine_tuned=fine_tuned)
    seconds = {"calibrate": 10.0, "fine_tune": 50.0, "pack": 1.0, "evaluate": 39.0, "publish": 0.1}
    shares = foreseen_shares(usual, seconds)
    assert list(shares) == list(usual)
    assert shares["prepare"] == usual["prepare"]
    ends = [0.0]
    for begin, end in shares.values():
        assert begin == ends[-1] < end
        ends.append(end)
    assert ends[-1] == 1.0
    widths = {stage: end - begin for stage, (begin, end) in shares.items()}
    for stage in ("calibrate", "fine_tune", "evaluate"):
        if stage in usual:
            expected = seconds[stage] / seconds["calibrate"]
            assert widths[stage] / widths["calibrate"] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    "seconds", [{}, {"calibrate": 0.0}, {"calibrate": float("nan")}, {"calibrate": -1.0}]
)
def test_without_useful_figures_shares_are_the_usual_ones(seconds: dict[str, float]) -> None:
    usual = stage_shares(fine_tuned=False)
    assert foreseen_shares(usual, seconds) == usual


def test_steps_follow_each_other_by_their_seconds() -> None:
    parts = step_parts(["a", "b", "batch-norm"], {"a": 1.0, "b": 3.0})
    assert [begin for begin, _ in parts[1:]] == [end for _, end in parts[:-1]]
    assert (parts[0][0], parts[-1][1]) == (0.0, 1.0)
    assert [end - begin for begin, end in parts] == pytest.approx([1 / 6, 3 / 6, 2 / 6])
    assert step_parts(["a", "b"], {}) == [(0.0, 0.5), (0.5, 1.0)]

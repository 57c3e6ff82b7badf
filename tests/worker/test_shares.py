"""How the stages share a job's progress."""

import pytest

from worker.pipeline import STAGES
from worker.shares import epoch_part, finish_part, stage_shares


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

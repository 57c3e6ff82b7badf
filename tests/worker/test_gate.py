"""The accuracy gate: the plain drop decides, to the last image."""

import numpy as np
import pytest

from worker.gate import judge

IMAGES = 150


def logits(wrong: int, first: int = 0) -> np.ndarray:
    """Logits for images of class 0, of which ``wrong`` from ``first`` on are taken for class 1."""
    found = np.tile(np.float32([2.0, 1.0]), (IMAGES, 1))
    found[first : first + wrong] = found[first : first + wrong, ::-1]
    return found


LABELS = np.zeros(IMAGES, dtype=np.int64)


@pytest.mark.parametrize(
    ("allowed", "lost", "passed"),
    # 3 of 150 is 0.02 exactly.
    [(0.02, 3, True), (0.02, 4, False), (0.0, 0, True), (0.0, 1, False), (1.0, 150, True)],
)
def test_the_drop_may_be_what_is_allowed_and_no_more(
    allowed: float, lost: int, passed: bool
) -> None:
    gate = judge(allowed, logits(0), logits(lost), LABELS)
    assert gate.passed is passed
    assert (gate.images, gate.full_precision) == (IMAGES, 1.0)
    assert gate.packed == (IMAGES - lost) / IMAGES
    assert gate.drop == lost / IMAGES


def test_a_packed_network_that_is_better_passes_any_gate() -> None:
    gate = judge(0.0, logits(9), logits(2), LABELS)
    assert gate.passed and gate.drop == pytest.approx(-7 / IMAGES)


def test_the_standard_error_is_that_of_the_paired_answers() -> None:
    # Three lost, two gained: each image adds +1, -1 or 0 to the drop.
    gate = judge(0.5, logits(2, first=100), logits(3), LABELS)
    adds = np.zeros(IMAGES)
    adds[:3], adds[100:102] = 1, -1
    assert gate.drop == pytest.approx(adds.mean())
    assert gate.standard_error == pytest.approx(adds.std() / np.sqrt(IMAGES))


def test_what_was_not_answered_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match="149"):
        judge(0.1, logits(0), logits(0), LABELS[:-1])

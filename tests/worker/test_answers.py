"""What the answers of two networks show: against hand-made examples and plain loops."""

from collections import Counter
from collections.abc import Sequence
from math import exp, isclose, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from worker import answers as answers_module
from worker.agreement import agreement
from worker.answers import Answers, answers_of
from worker.confidence import BINS, confidence
from worker.confusion import (
    MOST_ENTRIES,
    MOST_MATRIX_CLASSES,
    class_accuracies,
    confusion_difference,
)


def labels_of(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def answered(classes: Sequence[int], confidences: Sequence[float] | None = None) -> Answers:
    sure = [0.5] * len(classes) if confidences is None else confidences
    return Answers(np.array(classes, dtype=np.int64), np.array(sure, dtype=np.float64))


def random_answers(seed: int, images: int, classes: int) -> tuple[Answers, Answers, Any]:
    """Two networks that are often right, and often agree."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)

    def network() -> Answers:
        wrong = rng.random(images) < 0.4
        return answered(np.where(wrong, rng.integers(0, classes, images), labels).tolist())

    return network(), network(), labels


# Answers


def test_an_answer_is_the_largest_logit_and_its_softmax() -> None:
    logits = np.array([[0.0, 2.0, 1.0], [3.0, 3.0, -1.0]], dtype=np.float32)
    answers = answers_of(logits)
    assert answers.classes.tolist() == [1, 0]
    expected = [
        exp(2) / (exp(0) + exp(2) + exp(1)),
        exp(3) / (exp(3) + exp(3) + exp(-1)),
    ]
    np.testing.assert_allclose(answers.confidences, expected, rtol=1e-14)


def test_large_logits_do_not_overflow() -> None:
    answers = answers_of(np.array([[3e38, 0.0], [-3e38, -3e38]], dtype=np.float32))
    assert answers.confidences.tolist() == [1.0, 0.5]


def test_memory_mapped_logits_are_read_chunk_by_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = np.random.default_rng(0).normal(size=(101, 5)).astype(np.float32)
    whole = answers_of(logits)
    np.save(tmp_path / "logits.npy", logits)
    monkeypatch.setattr(answers_module, "_CHUNK_ROWS", 7)
    parts = answers_of(np.load(tmp_path / "logits.npy", mmap_mode="r"))
    np.testing.assert_array_equal(parts.classes, whole.classes)
    np.testing.assert_array_equal(parts.confidences, whole.confidences)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,)])
def test_logits_without_images_or_classes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="answer nothing"):
        answers_of(np.zeros(shape, dtype=np.float32))


@pytest.mark.parametrize("labels", [labels_of(), labels_of(0), labels_of(0, 1, 1)])
def test_labels_of_another_number_are_refused_everywhere(labels: NDArray[np.int64]) -> None:
    two = answered([0, 1])
    for measure in (
        lambda: agreement(two, two, labels),
        lambda: confidence(two, labels),
        lambda: class_accuracies({"packed": two}, labels, ("a", "b")),
        lambda: confusion_difference(two, two, labels, ("a", "b")),
    ):
        with pytest.raises(ValueError, match="labels"):
            measure()


# Agreement


def test_agreement_counts_what_was_lost_and_gained() -> None:
    labels = labels_of(0, 0, 1, 1, 2, 2)
    before = answered([0, 0, 1, 0, 1, 0])
    after = answered([0, 1, 1, 1, 1, 2])
    found = agreement(before, after, labels)
    assert (found.both_right, found.lost, found.gained, found.both_wrong) == (2, 1, 2, 1)
    assert found.top1 == 3 / 6
    assert found.of_right == 2 / 3
    assert isclose(found.change, 1 / 6)


@pytest.mark.parametrize("seed", range(3))
def test_the_standard_error_is_that_of_the_mean_of_each_images_change(seed: int) -> None:
    before, after, labels = random_answers(seed, 500, 4)
    found = agreement(before, after, labels)
    changes = [
        int(a == label) - int(b == label)
        for b, a, label in zip(before.classes, after.classes, labels, strict=True)
    ]
    assert isclose(found.change, float(np.mean(changes)), rel_tol=1e-12)
    assert isclose(found.standard_error, float(np.std(changes)) / sqrt(500), rel_tol=1e-9)
    assert found.both_right + found.lost + found.gained + found.both_wrong == 500


def test_a_network_agrees_with_itself_entirely() -> None:
    before, _, labels = random_answers(0, 50, 3)
    found = agreement(before, before, labels)
    assert (found.top1, found.of_right, found.lost, found.gained) == (1.0, 1.0, 0, 0)
    assert (found.change, found.standard_error) == (0.0, 0.0)


def test_agreement_of_right_is_unknown_where_nothing_was_right() -> None:
    found = agreement(answered([1, 1]), answered([0, 1]), labels_of(0, 0))
    assert found.of_right is None
    assert found.to_json()["of_right"] is None


# Confidence


def test_calibration_error_of_an_example_worked_by_hand() -> None:
    # Bin 5 of 10 holds 0.42 and 0.5 (its upper edge), one of two right: |0.5 - 0.46| = 0.04.
    # Bin 9 holds 0.81, 0.85 and 0.89, two of three right: |0.66667 - 0.85| = 0.18333.
    # Together (2 * 0.04 + 3 * 0.18333) / 5 = 0.126.
    answers = answered([0, 0, 0, 0, 0], [0.42, 0.5, 0.81, 0.85, 0.89])
    found = confidence(answers, labels_of(0, 1, 0, 0, 1), bins=10)
    assert isclose(found.expected_calibration_error, 0.126, rel_tol=1e-12)
    assert isclose(found.mean, 0.694, rel_tol=1e-12)
    assert [one.images for one in found.bins] == [0, 0, 0, 0, 2, 0, 0, 0, 3, 0]
    assert isclose(found.bins[4].confidence or 0, 0.46)
    assert found.bins[4].accuracy == 0.5
    assert (found.bins[0].confidence, found.bins[0].accuracy) == (None, None)


def plain_error(sure: Sequence[float], right: Sequence[bool], bins: int) -> float:
    """The definition, bin by bin."""
    error = 0.0
    for m in range(1, bins + 1):
        members = [
            i for i, c in enumerate(sure) if (m - 1) / bins < c <= m / bins or (m == bins and c > 1)
        ]
        if members:
            accuracy = sum(right[i] for i in members) / len(members)
            mean = sum(sure[i] for i in members) / len(members)
            error += len(members) / len(sure) * abs(accuracy - mean)
    return error


@pytest.mark.parametrize("seed", range(5))
def test_calibration_error_equals_its_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = (3 * rng.normal(size=(400, 6))).astype(np.float32)
    labels = rng.integers(0, 6, 400)
    answers = answers_of(logits)
    found = confidence(answers, labels)
    right = (answers.classes == labels).tolist()
    expected = plain_error(answers.confidences.tolist(), right, BINS)
    assert isclose(found.expected_calibration_error, expected, rel_tol=1e-12)
    assert len(found.bins) == BINS == 15
    assert sum(one.images for one in found.bins) == 400


def test_who_is_always_sure_and_always_right_has_no_calibration_error() -> None:
    found = confidence(answered([0, 1], [1.0, 1.0 + 1e-16]), labels_of(0, 1))
    assert found.expected_calibration_error == 0
    assert found.bins[-1].images == 2
    wrong = confidence(answered([1, 0], [1.0, 1.0]), labels_of(0, 1))
    assert wrong.expected_calibration_error == 1


# Classes and confusions


def test_the_accuracy_of_each_class_is_counted_by_form() -> None:
    labels = labels_of(0, 0, 0, 0, 2)
    forms = {"full_precision": answered([0, 0, 0, 2, 2]), "packed": answered([0, 1, 1, 2, 0])}
    assert class_accuracies(forms, labels, ("cat", "dog", "owl")) == [
        {"name": "cat", "images": 4, "accuracy": {"full_precision": 0.75, "packed": 0.25}},
        {"name": "dog", "images": 0, "accuracy": {"full_precision": None, "packed": None}},
        {"name": "owl", "images": 1, "accuracy": {"full_precision": 1.0, "packed": 0.0}},
    ]


def test_the_confusions_that_grew_and_shrank_are_named() -> None:
    labels = labels_of(0, 0, 0, 0, 1, 1, 2)
    before = answered([0, 0, 0, 2, 1, 0, 1])
    after = answered([1, 1, 0, 0, 1, 2, 1])
    found = confusion_difference(before, after, labels, ("cat", "dog", "owl")).to_json()
    assert found["matrix"] == [[-1, 2, -1], [-1, 0, 1], [0, 0, 0]]
    assert found["grown"] == (
        {"label": "cat", "answer": "dog", "before": 0, "after": 2},
        {"label": "dog", "answer": "owl", "before": 0, "after": 1},
    )
    assert found["shrunk"] == (
        {"label": "cat", "answer": "owl", "before": 1, "after": 0},
        {"label": "dog", "answer": "cat", "before": 1, "after": 0},
    )


def plain_matrix(answers: Answers, labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    matrix = np.zeros((classes, classes), dtype=np.int64)
    for label, answer in zip(labels, answers.classes, strict=True):
        matrix[label, answer] += 1
    return matrix


@pytest.mark.parametrize("classes", [2, 7, MOST_MATRIX_CLASSES])
def test_the_matrix_is_the_difference_of_two_confusion_matrices(classes: int) -> None:
    before, after, labels = random_answers(classes, 900, classes)
    names = [str(i) for i in range(classes)]
    found = confusion_difference(before, after, labels, names)
    was, now = (plain_matrix(answers, labels, classes) for answers in (before, after))
    matrix = np.array(found.matrix)
    np.testing.assert_array_equal(matrix, now - was)
    assert not matrix.sum(axis=1).any()
    for entries, sign in ((found.grown, 1), (found.shrunk, -1)):
        pairs = [(int(one.label), int(one.answer)) for one in entries]
        assert [(one.before, one.after) for one in entries] == [
            (was[pair], now[pair]) for pair in pairs
        ]
        off_diagonal = sign * (now - was) * (1 - np.eye(classes, dtype=np.int64))
        largest = np.sort(off_diagonal[off_diagonal > 0])[::-1][:MOST_ENTRIES]
        assert [sign * (one.after - one.before) for one in entries] == largest.tolist()


def test_a_thousand_classes_leave_only_the_largest_entries() -> None:
    before, after, labels = random_answers(1, 5000, 1000)
    found = confusion_difference(before, after, labels, [f"n{i:04}" for i in range(1000)])
    assert found.matrix is None
    assert len(found.grown) == len(found.shrunk) == MOST_ENTRIES
    counts = Counter(zip(labels.tolist(), after.classes.tolist(), strict=True))
    for one in found.grown:
        assert counts[int(one.label[1:]), int(one.answer[1:])] == one.after > one.before


def test_equal_networks_confuse_nothing_anew() -> None:
    before, _, labels = random_answers(2, 60, 3)
    found = confusion_difference(before, before, labels, ("a", "b", "c"))
    assert (found.grown, found.shrunk) == ((), ())
    assert found.matrix == [[0] * 3] * 3

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.preprocessing import InputSpec
from store.errors import InvalidCheckpoint
from worker import evaluation
from worker.data import ImageSet
from worker.evaluation import accuracy, parity, predict_logits, predictions
from worker.image_cache import DecodedDataset

SPEC = InputSpec(1, 2, 2, (0.0,), (1.0,), (0.0, 255.0))


def ignore(fraction: float, message: str, details: object = None) -> None:
    pass


@pytest.fixture
def images() -> ImageSet:
    """Ten images of 2 x 2 pixels, all of the value of their row; odd rows are odd."""
    values = np.arange(10, dtype=np.uint8)
    dataset = DecodedDataset(
        images=np.broadcast_to(values[:, None, None, None], (10, 2, 2, 1)),
        labels=np.arange(10) % 2,
        names=tuple(f"{value}.png" for value in values),
        classes=("even", "odd"),
        splits={"all": range(10)},
    )
    return ImageSet(dataset, np.array([7, 1, 2, 3, 9, 0, 4]))


def halves(x: torch.Tensor) -> torch.Tensor:
    """Logits (value, value / 2) of each image."""
    value = x.mean(dim=(1, 2, 3))
    return torch.stack([value, value / 2], dim=1)


@pytest.mark.parametrize("batch_images", [1, 3, 7, 100])
def test_logits_come_in_the_order_of_the_images(images: ImageSet, batch_images: int) -> None:
    seen: list[tuple[float, str, dict[str, Any]]] = []
    logits = predict_logits(
        halves, images, SPEC, lambda *call: seen.append(call), batch_images=batch_images
    )
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits[:, 0], [7, 1, 2, 3, 9, 0, 4])
    np.testing.assert_array_equal(logits[:, 1], logits[:, 0] / 2)
    fractions = [fraction for fraction, _, _ in seen]
    assert len(fractions) == -(-7 // batch_images)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert [details["images"] for _, _, details in seen] == [
        min(done * batch_images, 7) for done in range(1, len(seen) + 1)
    ]
    assert all(details["images_per_second"] > 0 for _, _, details in seen)


def test_no_gradients_are_kept(images: ImageSet) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    modes: list[bool] = []

    def predict(x: torch.Tensor) -> torch.Tensor:
        modes.append(torch.is_inference_mode_enabled())
        return halves(x) * weight

    predict_logits(predict, images, SPEC, ignore)
    assert modes == [True]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_answer_that_is_not_finite_is_named(images: ImageSet, value: float) -> None:
    def predict(x: torch.Tensor) -> torch.Tensor:
        answer = halves(x)
        answer[x[:, 0, 0, 0] == 9, 1] = value
        return answer

    with pytest.raises(InvalidCheckpoint) as caught:
        predict_logits(predict, images, SPEC, ignore, batch_images=3, network="calibrated network")
    assert '"9.png"' in caught.value.detail
    assert "calibrated network" in caught.value.detail
    assert caught.value.remedy


def test_an_answer_of_the_wrong_shape_is_refused(images: ImageSet) -> None:
    with pytest.raises(ValueError, match="answers"):
        predict_logits(lambda x: x, images, SPEC, ignore)
    with pytest.raises(ValueError, match="answers"):
        predict_logits(lambda x: halves(x)[:1], images, SPEC, ignore)
    with pytest.raises(ValueError, match="no images"):
        predict_logits(halves, ImageSet(images.dataset, np.array([], dtype=np.int64)), SPEC, ignore)


def test_accuracy_is_the_share_of_right_first_classes() -> None:
    logits = np.array([[1, 0], [0, 1], [2, 1], [0, 3]], dtype=np.float32)
    assert accuracy(logits, np.array([0, 1, 1, 0])) == 0.5
    assert accuracy(logits, np.array([0, 1, 0, 1])) == 1.0
    for labels in (np.array([0]), np.array([], dtype=np.int64)):
        with pytest.raises(ValueError):
            accuracy(logits, labels)


def test_parity_measures_agreement_difference_and_scale() -> None:
    expected = np.array([[1, 0], [0, -8], [2, 1], [0, 3]], dtype=np.float32)
    actual = np.array([[1, 0.5], [0, -8], [2, 2.25], [0, 3]], dtype=np.float32)
    result = parity(expected, actual)
    assert result.to_json() == {
        "top1_agreement": 0.75,
        "largest_logit_difference": 1.25,
        "largest_logit": 8.0,
    }
    same = parity(expected, expected)
    assert (same.top1_agreement, same.largest_logit_difference) == (1.0, 0.0)
    with pytest.raises(ValueError, match="shapes"):
        parity(expected, actual[:2])
    with pytest.raises(ValueError, match="shapes"):
        parity(expected[:0], actual[:0])


def test_memory_mapped_logits_measure_the_same_chunk_by_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(101, 5)).astype(np.float32)
    b = a + rng.normal(scale=0.3, size=a.shape).astype(np.float32)
    labels = rng.integers(0, 5, 101)
    whole = parity(a, b), accuracy(a, labels)
    assert 0 < whole[0].top1_agreement < 1
    for name, logits in (("a", a), ("b", b)):
        np.save(tmp_path / name, logits)
    monkeypatch.setattr(evaluation, "_CHUNK_ROWS", 7)
    mapped_a, mapped_b = (np.load(tmp_path / f"{n}.npy", mmap_mode="r") for n in "ab")
    assert (parity(mapped_a, mapped_b), accuracy(mapped_a, labels)) == whole


def test_predictions_name_image_label_class_and_margin(images: ImageSet) -> None:
    logits = predict_logits(halves, images, SPEC, ignore)
    content = predictions(logits, images, ("even", "odd"), "test")
    assert content["split"] == "test"
    assert content["images"][:3] == [
        {"name": "7.png", "label": "odd", "class": "even", "margin": 3.5},
        {"name": "1.png", "label": "odd", "class": "even", "margin": 0.5},
        {"name": "2.png", "label": "even", "class": "even", "margin": 1.0},
    ]
    assert len(content["images"]) == 7
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_predictions_need_as_many_logits_as_images_and_classes(images: ImageSet) -> None:
    logits = predict_logits(halves, images, SPEC, ignore)
    for wrong, classes in (
        (logits[:3], ("a", "b")),
        (logits, ("a", "b", "c")),
        (logits[:, :1], ("a",)),
    ):
        with pytest.raises(ValueError, match="classes"):
            predictions(wrong, images, classes, "test")

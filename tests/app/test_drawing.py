"""Scales and plots: what is drawn lies where its value says."""

from itertools import pairwise
from math import isclose

import pytest

from app.drawing import Dot, Drawing, Line, Rectangle, Text, linear_scale, logarithmic_scale
from app.report_document import Bin, ClassAccuracy, Epoch, Layer
from app.report_numbers import count, loss_text, megabytes, percent, points, signed
from app.report_plots import (
    MOST_BARS,
    change_of,
    class_bars,
    epoch_curves,
    loss_by_step,
    ranked_layers,
    reliability,
    shown_classes,
)

# Scales


@pytest.mark.parametrize(
    "values",
    [[0.0, 1.0], [-0.089, -0.024], [0.0922], [3, 5, 1700], [1e-7], [-2.5, 4], [0.3, 0.3], [0.0]],
)
@pytest.mark.parametrize("zero", [True, False])
def test_a_linear_scale_holds_its_values_between_round_ticks(
    values: list[float], zero: bool
) -> None:
    scale = linear_scale(values, 100, 300, zero=zero)
    assert scale.low <= min(values) <= max(values) <= scale.high
    assert not zero or scale.low <= 0 <= scale.high
    assert 2 <= len(scale.ticks) <= 8
    steps = [b - a for a, b in pairwise(scale.ticks)]
    assert all(isclose(step, steps[0], rel_tol=1e-6) for step in steps)
    assert f"{steps[0]:.3e}"[:5] in {"1.000", "2.000", "5.000"}
    assert (scale.at(scale.low), scale.at(scale.high)) == (100, 300)
    for unit in (1, 100):
        decimals = scale.decimals(unit)
        assert [float(f"{unit * tick:.{decimals}f}") for tick in scale.ticks] == pytest.approx(
            [unit * tick for tick in scale.ticks], rel=1e-9, abs=1e-12
        )
    middle = (scale.low + scale.high) / 2
    assert isclose(scale.at(middle), 200)


@pytest.mark.parametrize(
    "values",
    [[0.4, 0.02], [0.0922], [1.0, 1e-9, 0.0], [0.0], [], [0.1, 1.0], [1e-5, 3e-5], [5.0, 2.0]],
)
def test_a_logarithmic_scale_has_equal_steps_for_equal_ratios(values: list[float]) -> None:
    scale = logarithmic_scale(values, 100, 8)
    assert 0 < scale.low < scale.high <= 1e7 * scale.low
    assert max(values, default=1) <= scale.high
    assert (scale.at(scale.low), scale.at(scale.high)) == (100, 8)
    assert isclose(scale.at((scale.low * scale.high) ** 0.5), 54)
    assert scale.at(0) == 100
    assert scale.ticks
    assert all(scale.low <= tick <= scale.high for tick in scale.ticks)


# Numbers


def test_numbers_are_written_with_their_units_and_signs() -> None:
    assert percent(0.88621) == "88.62\N{NO-BREAK SPACE}%"
    assert [points(change) for change in (-0.02714, 0.003, 0.0, -0.00001)] == [
        "\N{MINUS SIGN}2.71",
        "+0.30",
        "0.00",
        "0.00",
    ]
    assert [signed(number) for number in (-1200, 7, 0)] == ["\N{MINUS SIGN}1,200", "+7", "0"]
    assert (count(10_000), megabytes(620_000)) == ("10,000", "0.62 MB")
    assert [loss_text(loss) for loss in (0.09222, 0.5, 0.0)] == ["0.0922", "0.5", "0"]


# Plots


def layer(name: str, *losses: float) -> Layer:
    return Layer(
        name=name, kind="conv2d", shape=(1, 1, 3, 3), weights=9, binary=bool(losses), losses=losses
    )


def of_class(name: str, before: float | None, after: float | None) -> ClassAccuracy:
    accuracy = {"full_precision": before, "calibrated": 0.5, "packed": after}
    return ClassAccuracy(name=name, images=10, accuracy=accuracy)


def texts(drawing: Drawing, style: str) -> list[str]:
    return [one.text for one in drawing.marks if isinstance(one, Text) and one.style == style]


def bars(drawing: Drawing, style: str) -> list[Rectangle]:
    return [one for one in drawing.marks if isinstance(one, Rectangle) and one.style == style]


def test_layers_are_ranked_and_their_bars_are_as_long_as_their_losses() -> None:
    drawing = ranked_layers([layer("a", 0.3, 0.02), layer("kept"), layer("b", 0.08), layer("c", 0)])
    assert texts(drawing, "label") == ["b", "a", "c"]
    assert texts(drawing, "value") == ["0.08", "0.02", "0"]
    lengths = [bar.width for bar in bars(drawing, "after")]
    assert isclose(lengths[0], 4 * lengths[1])
    assert lengths[2] == 0


def test_every_binary_layer_has_a_plot_on_one_scale() -> None:
    plots = loss_by_step([layer("a", 0.4, 0.1, 0.05), layer("kept"), layer("b", 0.1)])
    assert [one.name for one, _ in plots] == ["a", "b"]
    (_, first), (_, second) = plots
    dots = [[one for one in drawing.marks if isinstance(one, Dot)] for drawing in (first, second)]
    assert [len(found) for found in dots] == [3, 1]
    # Less is lower, and the same loss is as high in both.
    assert dots[0][0].y < dots[0][1].y < dots[0][2].y
    assert dots[0][1].y == dots[1][0].y
    assert dots[0][2].title == "step 2: 0.05"
    assert "0.4 at the start, 0.05 after 2 steps" in first.title
    curves = [one for one in first.marks if isinstance(one, Line) and "curve" in one.style]
    assert [len(curve.points) for curve in curves] == [3]


def test_bars_of_a_class_are_as_long_as_its_accuracy() -> None:
    classes = [of_class("a", 0.8, 0.4), of_class("b", 0.2, 0.3)]
    drawing = class_bars(classes)
    (before_a, before_b), (after_a, after_b) = bars(drawing, "before"), bars(drawing, "after")
    assert isclose(before_a.width, 2 * after_a.width)
    assert isclose(before_a.width, 4 * before_b.width)
    assert isclose(after_b.width, 1.5 * before_b.width)
    (lost,), (gained,) = bars(drawing, "worse"), bars(drawing, "better")
    assert isclose(lost.width, 4 * gained.width)
    assert isclose(lost.x + lost.width, gained.x)
    assert texts(drawing, "value") == ["\N{MINUS SIGN}40.0", "+10.0"]


def test_classes_come_by_what_they_lost_and_those_without_images_are_left_out() -> None:
    classes = [of_class("same", 0.5, 0.5), of_class("none", None, None), of_class("lost", 0.9, 0.1)]
    assert [one.name for one in shown_classes(classes)] == ["lost", "same"]
    assert change_of(classes[1]) is None


def test_of_very_many_classes_only_the_two_ends_are_drawn() -> None:
    classes = [of_class(str(i), 0.5, i / 1000) for i in range(1000)]
    shown = [int(one.name) for one in shown_classes(classes)]
    assert len(shown) == MOST_BARS
    assert shown[0] == 0
    assert shown[-1] == 999
    assert shown == sorted(shown)


@pytest.mark.parametrize("spread", [0.5, 0.05, 0.004, 0.0003])
def test_ticks_close_together_are_told_apart(spread: float) -> None:
    classes = [of_class("a", 0.5, 0.5 - spread), of_class("b", 0.5, 0.5 + spread / 2)]
    epochs = [Epoch(loss=0.3 + spread, train_accuracy=0.5 + spread)] * 3
    epochs.append(Epoch(loss=0.3, train_accuracy=0.5))
    drawings = [class_bars(classes), *(drawing for _, drawing in epoch_curves(epochs))]
    for drawing in drawings:
        # Those of one axis stand in one line or in one column.
        lines: dict[tuple[str, float], list[str]] = {}
        for one in drawing.marks:
            if isinstance(one, Text) and one.style == "tick" and one.anchor != "start":
                at = (one.anchor, one.x if one.anchor == "end" else one.y)
                lines.setdefault(at, []).append(one.text)
        percents = [text for text in lines.values() if "%" in text[0] or len(text) > 3]
        assert percents
        for found in percents:
            assert len(set(found)) == len(found)


def test_a_long_name_is_shortened_to_fit() -> None:
    (label,) = texts(class_bars([of_class("x" * 300, 1, 1)]), "label")
    assert len(label) < 30


def test_a_rightly_sure_network_meets_the_diagonal() -> None:
    rows = [
        Bin(images=4, confidence=0.25, accuracy=0.25),
        Bin(images=0, confidence=None, accuracy=None),
        Bin(images=4, confidence=1.0, accuracy=1.0),
    ]
    drawing = reliability(rows, "packed", "after")
    low, high = bars(drawing, "after")
    assert isclose(high.height, 4 * low.height)
    assert low.x < high.x
    (diagonal,) = [
        one for one in drawing.marks if isinstance(one, Line) and one.style == "diagonal"
    ]
    (_, bottom), (_, top) = diagonal.points
    assert isclose(high.y, top)
    assert isclose(low.y + low.height, bottom)


@pytest.mark.parametrize("count", [1, 2, 7, 200])
def test_epochs_become_a_curve_from_left_to_right(count: int) -> None:
    epochs = [Epoch(loss=1 / (i + 1), train_accuracy=1 - 0.5 / (i + 1)) for i in range(count)]
    (_, loss), (_, accuracy) = epoch_curves(epochs)
    for drawing, falls in ((loss, True), (accuracy, False)):
        (curve,) = [one for one in drawing.marks if isinstance(one, Line) and "curve" in one.style]
        assert len(curve.points) == count
        for (x, y), (next_x, next_y) in pairwise(curve.points):
            assert x < next_x
            assert (y < next_y) is falls
        numbers = [int(text) for text in texts(drawing, "tick") if text.isdecimal()]
        assert len([n for n in numbers if n]) <= 16


def test_epochs_without_an_accuracy_have_a_plot_of_the_loss_alone() -> None:
    plots = epoch_curves([Epoch(loss=1.0, train_accuracy=0.5), Epoch(loss=0.5)])
    assert [title for title, _ in plots] == ["Training loss"]


def test_everything_drawn_lies_within_the_drawing() -> None:
    drawings = [
        ranked_layers([layer(str(i), 10.0 ** (i % 7 - 3)) for i in range(100)]),
        class_bars([of_class("a", 1, 0), of_class("b", 0, 1), of_class("c", 1, 1)]),
        *(drawing for _, drawing in loss_by_step([layer("a", 3e-5, 7.0, 1e-12)])),
        *(drawing for _, drawing in epoch_curves([Epoch(loss=2.0), Epoch(loss=1.0)])),
    ]
    for drawing in drawings:
        for mark in drawing.marks:
            places = mark.points if isinstance(mark, Line) else ((mark.x, mark.y),)
            if isinstance(mark, Rectangle):
                places += ((mark.x + mark.width, mark.y + mark.height),)
            assert all(0 <= x <= drawing.width for x, _ in places)
            assert all(0 <= y <= drawing.height for _, y in places)

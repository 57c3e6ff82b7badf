"""The plots of a report's page, from its figures to `Drawing`s."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import ceil

from app.drawing import Dot, Drawing, Line, Mark, Rectangle, Scale, Text, linear_scale
from app.drawing import logarithmic_scale as log_scale
from app.report_document import Bin, ClassAccuracy, Epoch, Layer
from app.report_numbers import loss_text, percent, points

# More rows than this are no picture any more; the page's tables have all of them.
MOST_BARS = 40

_Format = Callable[[float], str]

_NAME_LENGTH = 22
_NAME_WIDTH = 176.0
_ROW = 24.0


def loss_by_step(layers: Iterable[Layer]) -> list[tuple[Layer, Drawing]]:
    """Return each binary layer and a small plot of its loss; all share one logarithmic scale."""
    binary = [layer for layer in layers if layer.losses]
    values = [loss for layer in binary for loss in layer.losses]
    scale = log_scale(values, start=98, end=8)
    return [(layer, _steps(layer, scale)) for layer in binary]


def _steps(layer: Layer, scale: Scale) -> Drawing:
    left, right = 40.0, 204.0
    last = len(layer.losses) - 1
    places = tuple(
        (left + (right - left) * step / max(last, 1), scale.at(loss))
        for step, loss in enumerate(layer.losses)
    )
    marks: list[Mark] = [*_horizontal_grid(scale, left, right, loss_text)]
    marks += [Text(left, 114, "0", "middle", "tick")]
    if last:
        marks += [
            Text(right, 114, str(last), "middle", "tick"),
            Text((left + right) / 2, 114, "step", "middle", "tick"),
            Line(places, "curve after"),
        ]
    marks += [
        Dot(x, y, 2.5, "after", f"{'start' if i == 0 else f'step {i}'}: {loss_text(loss)}")
        for i, ((x, y), loss) in enumerate(zip(places, layer.losses, strict=True))
    ]
    begin, end = loss_text(layer.losses[0]), loss_text(layer.losses[-1])
    title = f"Relative loss of {layer.name}: {begin} at the start, {end} after {last} steps"
    return Drawing(title, 216, 120, tuple(marks))


def ranked_layers(layers: Iterable[Layer]) -> Drawing:
    """Return bars of the last loss of each binary layer, the largest first."""
    ranked = sorted((one for one in layers if one.losses), key=lambda one: -one.losses[-1])
    ranked = ranked[:MOST_BARS]
    scale = linear_scale([one.losses[-1] for one in ranked], _NAME_WIDTH, 560)
    bottom = 8 + _ROW * len(ranked)
    marks: list[Mark] = [*_vertical_grid(scale, 8, bottom, _plain_ticks(scale))]
    for row, layer in enumerate(ranked):
        y, loss = 8 + _ROW * row, layer.losses[-1]
        marks += [
            Text(_NAME_WIDTH - 8, y + 16, _short(layer.name), "end"),
            Rectangle(scale.start, y + 4, scale.at(loss) - scale.start, _ROW - 8, "after"),
            Text(scale.at(loss) + 6, y + 16, loss_text(loss), style="value"),
        ]
    title = "Final relative loss of each binary layer, the largest first"
    return Drawing(title, 640, bottom + 20, tuple(marks))


def shown_classes(classes: Sequence[ClassAccuracy]) -> list[ClassAccuracy]:
    """Return the classes with images, those that lost most first; of very many, the two ends.

    Three quarters of those shown are then the ones that lost most.
    """
    measured = sorted((one for one in classes if change_of(one) is not None), key=_change)
    if len(measured) <= MOST_BARS:
        return measured
    gained = MOST_BARS // 4
    return [*measured[: MOST_BARS - gained], *measured[-gained:]]


def change_of(one: ClassAccuracy) -> float | None:
    """Return a class's accuracy after less that before, or None where it has no images."""
    before, after = one.accuracy.get("full_precision"), one.accuracy.get("packed")
    return None if before is None or after is None else after - before


def class_bars(classes: Sequence[ClassAccuracy]) -> Drawing:
    """Return, for each of ``classes``, its accuracy before and after, and the change beside it."""
    changes = [_change(one) for one in classes]
    accuracy = linear_scale([0, 1], _NAME_WIDTH, 440)
    change = linear_scale(changes, 520, 690, ticks=3)
    row_height = 30.0
    top, bottom = 30.0, 30.0 + row_height * len(classes)
    marks: list[Mark] = [
        Text(accuracy.start, 16, "accuracy", style="heading"),
        Text(change.start, 16, "change, in points", style="heading"),
        *_vertical_grid(accuracy, top, bottom, _percent_ticks(accuracy)),
        *_vertical_grid(change, top, bottom, partial(points, decimals=change.decimals(100))),
    ]
    for row, (one, difference) in enumerate(zip(classes, changes, strict=True)):
        y = top + row_height * row
        marks.append(Text(_NAME_WIDTH - 8, y + 19, _short(one.name), "end"))
        for place, form in enumerate(("full_precision", "packed")):
            share = one.accuracy[form] or 0.0
            style = ("before", "after")[place]
            width = accuracy.at(share) - accuracy.start
            marks += [
                Rectangle(accuracy.start, y + 4 + 11 * place, width, 10, style),
                Text(accuracy.at(share) + 5, y + 13 + 11 * place, percent(share, 1), style="tick"),
            ]
        begin, end = sorted((change.at(0), change.at(difference)))
        style = "worse" if difference < 0 else "better"
        marks += [
            Rectangle(begin, y + 9, end - begin, 12, style),
            Text(704, y + 19, points(difference, 1), style="value"),
        ]
    marks.append(_upright(change.at(0), top, bottom, "zero"))
    title = "Accuracy of each class before and after compression, those that lost most first"
    return Drawing(title, 752, bottom + 20, tuple(marks))


def reliability(bins: Sequence[Bin], form: str, style: str) -> Drawing:
    """Return the accuracy in each bin of confidence; a network that is rightly sure is diagonal."""
    across, up = linear_scale([0, 1], 44, 244), linear_scale([0, 1], 208, 8)
    marks: list[Mark] = [
        *_horizontal_grid(up, across.start, across.end, _percent_ticks(up)),
        Text(across.at(0), 224, "0", "middle", "tick"),
        Text(across.at(1), 224, "100 %", "middle", "tick"),
        Text(across.at(0.5), 224, "confidence", "middle", "tick"),
    ]
    width = (across.end - across.start) / max(len(bins), 1)
    images = max(sum(one.images for one in bins), 1)
    for place, one in enumerate(bins):
        if one.accuracy is None or one.confidence is None:
            continue
        y = up.at(one.accuracy)
        what = (
            f"{one.images:,} images ({percent(one.images / images, 1)}): confidence "
            f"{percent(one.confidence, 1)}, accuracy {percent(one.accuracy, 1)}"
        )
        x = across.start + width * place
        marks.append(Rectangle(x + 1, y, width - 2, up.start - y, style, what))
    marks.append(Line(((across.at(0), up.at(0)), (across.at(1), up.at(1))), "diagonal"))
    return Drawing(f"Accuracy by confidence, {form}", 264, 230, tuple(marks))


def epoch_curves(epochs: Sequence[Epoch]) -> list[tuple[str, Drawing]]:
    """Return the course of the training loss, and of the training accuracy where it is known."""
    losses = [one.loss for one in epochs]
    plots = [("Training loss", _course(losses, "loss", loss_text, _plain_ticks))]
    accuracies = [one.train_accuracy for one in epochs if one.train_accuracy is not None]
    if len(accuracies) == len(epochs):
        course = _course(accuracies, "accuracy", percent, _percent_ticks)
        plots.append(("Accuracy on the training images", course))
    return plots


def _course(
    values: Sequence[float], what: str, text: _Format, ticks: Callable[[Scale], _Format]
) -> Drawing:
    up = linear_scale(values, 168, 10, zero=False)
    left, right = 56.0, 336.0
    step = (right - left) / max(len(values) - 1, 1)
    places = tuple((left + step * i, up.at(value)) for i, value in enumerate(values))
    marks: list[Mark] = [*_horizontal_grid(up, left, right, ticks(up))]
    # At most about six numbers fit below.
    every = max(ceil(len(values) / 6), 1)
    marks += [
        Text(x, 184, str(i + 1), "middle", "tick")
        for i, (x, _) in enumerate(places)
        if i % every == 0
    ]
    marks += [Text((left + right) / 2, 200, "epoch", "middle", "tick"), Line(places, "curve after")]
    if len(values) <= MOST_BARS:
        marks += [
            Dot(x, y, 3, "after", f"epoch {i + 1}: {text(value)}")
            for i, ((x, y), value) in enumerate(zip(places, values, strict=True))
        ]
    title = f"Training {what} after each of {len(values)} epochs, at last {text(values[-1])}"
    return Drawing(title, 352, 206, tuple(marks))


def _horizontal_grid(scale: Scale, left: float, right: float, text: _Format) -> Iterator[Mark]:
    for tick in scale.ticks:
        y = scale.at(tick)
        yield Line(((left, y), (right, y)), "grid")
        yield Text(left - 5, y + 3.5, text(tick), "end", "tick")


def _vertical_grid(scale: Scale, top: float, bottom: float, text: _Format) -> Iterator[Mark]:
    for tick in scale.ticks:
        yield _upright(scale.at(tick), top, bottom, "grid")
        yield Text(scale.at(tick), bottom + 14, text(tick), "middle", "tick")


def _plain_ticks(scale: Scale) -> _Format:
    return lambda value: f"{value:.{scale.decimals()}f}"


def _percent_ticks(scale: Scale) -> _Format:
    return partial(percent, decimals=scale.decimals(100))


def _upright(x: float, top: float, bottom: float, style: str) -> Line:
    return Line(((x, top), (x, bottom)), style)


def _change(one: ClassAccuracy) -> float:
    return change_of(one) or 0.0


def _short(name: str) -> str:
    """Return ``name`` so short that it fits beside its bar."""
    return (
        name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + "\N{HORIZONTAL ELLIPSIS}"
    )

"""The paper's figures as commands: what they measure on the digits, and what they write."""

import json
import os
import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

from benchmarks import digits
from benchmarks.compression import calibrate, load_network
from benchmarks.digits.training import predict
from benchmarks.options import told
from benchmarks.paper import comparison, figure1, figure2, figure3, table1
from benchmarks.paper.charts import Dots, Level, Panel, Series, dots, lines, plot
from benchmarks.paper.comparison import Budget, about_bits, in_largest, measured, run_variant
from benchmarks.paper.results import Result, Table
from benchmarks.paper.tables import Plan, make_table
from benchmarks.paper.variants import PUBLISHED, VARIANTS, Variant, bwnh_as_published, chosen
from benchmarks.paper.workloads import WORKLOADS, Bench, about_split, find, load
from store.errors import InvalidSpec
from store.specs import BwnhParameters

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("BITPRESS_SHARED", ROOT / "../shared"))

COMMANDS = {
    "figure1": figure1.main,
    "figure2": figure2.main,
    "figure3": figure3.main,
    "table1": table1.main,
}
# Enough to see every effect; keeps a calibration to a second.
IMAGES = 100
QUICKLY = ["sweeps=3"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The digits and their network, trained on the spot."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return load(find("digits", None, None), tmp_path_factory.mktemp("cache"))
    finally:
        torch.set_num_threads(threads)


def read_table(page: str) -> list[list[str]]:
    """Return the cells of a page's table, without its headings."""
    rows = [line for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def check_picture(file: Path) -> None:
    """Check that a picture is as wide as a page needs, and not one colour."""
    with Image.open(file) as image:
        assert image.format == "PNG"
        assert 1000 <= image.width <= 1200
        assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 10


@pytest.mark.slow
def test_figure_1_shows_losses_that_never_rise(bench: Bench, tmp_path: Path) -> None:
    losses = figure1.measure(bench, [0, 1], IMAGES, QUICKLY)
    assert len(losses) == 4
    for by_sweep in losses.values():
        assert len(by_sweep) == 4
        assert 1 > by_sweep[0] > by_sweep[1] >= by_sweep[2] >= by_sweep[3] > 0
    figure1.result(bench, losses, [0, 1], IMAGES).write(tmp_path)

    record = json.loads((tmp_path / "figure1-digits.json").read_text())
    assert record["seed"] == [0, 1]
    assert record["figures"]["features.3.sweep2_loss"] == losses["features.3"][2]
    table = read_table((tmp_path / "figure1-digits.md").read_text())
    for row, (name, by_sweep) in zip(table, losses.items(), strict=True):
        assert f"`{name}`" in row[0]
        assert [float(row[1]), float(row[2])] == pytest.approx(by_sweep[:2], abs=1e-4)
    check_picture(tmp_path / "figure1-digits.png")


@pytest.mark.slow
def test_figure_3_goes_from_the_full_network_to_the_calibrated_one(
    bench: Bench, tmp_path: Path
) -> None:
    accuracies = figure3.measure(bench, [0], IMAGES, QUICKLY, "test")
    figure3.result(bench, accuracies, [0], IMAGES, "test").write(tmp_path)

    _, test = digits.split(digits.load())
    right = (predict(bench.network, test).numpy() == test.labels).mean()
    (scaled,), (unscaled,) = accuracies["with scale"], accuracies["without scale"]
    assert scaled[0] == unscaled[0] == pytest.approx(right)
    spec = bench.workload.spec(bwnh_as_published(QUICKLY), calibration_images=IMAGES)
    calibrated = calibrate(bench.network, bench.calibration_images(spec), spec).network
    assert scaled[-1] == measured(bench, calibrated, bench.splits(0).test).top1
    # The paper's claim: without scales accuracy falls to chance.
    assert scaled[-1] > 0.9 > 0.3 > unscaled[-1]

    record = json.loads((tmp_path / "figure3-digits.json").read_text())
    assert record["figures"]["with_scale.layers4_accuracy"] == scaled[-1]
    table = read_table((tmp_path / "figure3-digits.md").read_text())
    assert [float(row[2]) for row in table] == pytest.approx([100 * a for a in scaled], abs=0.01)
    check_picture(tmp_path / "figure3-digits.png")


@pytest.mark.slow
def test_figure_2_shows_what_fine_tuning_brings(bench: Bench, tmp_path: Path) -> None:
    variants, budget = chosen("bwnh,bwn"), Budget(2, None, ["learning_rate=0.002"])
    runs = figure2.measure(bench, variants, [0], IMAGES, budget, "test")
    full = figure2.full_precision(bench, [0], "test")
    figure2.result(bench, runs, full, [0], IMAGES, "test").write(tmp_path)

    (bwnh,), (bwn,) = runs["bwnh"], runs["bwn"]
    assert len(bwnh.validation) == len(bwn.validation) == 3
    # Codes by hashing are where signs come to in epochs.
    assert bwnh.calibrated.top1 > 0.9 > 0.3 > bwn.calibrated.top1
    assert bwn.fine_tuned.top1 > bwn.calibrated.top1 + 0.3
    _, test = digits.split(digits.load())
    right = (predict(bench.network, test).numpy() == test.labels).mean()
    assert full[0].top1 == pytest.approx(right)

    record = json.loads((tmp_path / "figure2-digits.json").read_text())
    assert record["figures"]["bwn.validation.epoch2"] == bwn.validation[2]
    assert record["figures"]["bwnh.fine_tuned"] == bwnh.fine_tuned.top1
    check_picture(tmp_path / "figure2-digits.png")


@pytest.mark.slow
def test_table_1_trains_every_method_as_long(bench: Bench, tmp_path: Path) -> None:
    methods = "binary_connect,bwn,sq_bwn,hwgq_bwn,bwnh_as_published,bwnh"
    plan = Plan(1, chosen(methods), [0], IMAGES, Budget(1, None), "validation")
    make_table(bench, plan, tmp_path)
    record = json.loads((tmp_path / "table1-digits.json").read_text())
    table = read_table((tmp_path / "table1-digits.md").read_text())
    assert [row[0] for row in table] == [
        "full precision",
        *(VARIANTS[key].title for key in methods.split(",")),
    ]
    for row, key in zip(table[1:], methods.split(","), strict=True):
        assert record["figures"][f"{key}.epochs"] == 1
        accuracy = record["figures"][f"{key}.fine_tuned"]
        assert accuracy > 0.2
        assert float(row[2]) == pytest.approx(100 * accuracy, abs=0.01)
        bits = record["figures"][f"{key}.bits_per_weight"]
        # Of BWNH of bitpress alone a layer may have several bases.
        assert bits == 1 or (key == "bwnh" and 1 < bits <= 1.025)
        assert float(row[5]) == pytest.approx(bits, abs=0.001)
        drop = 100 * (record["figures"]["full_precision"] - accuracy)
        assert float(row[4]) == pytest.approx(drop, abs=0.01)
    check_picture(tmp_path / "table1-digits.png")


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "minutes", "epochs"), [(7.0, 1.0, 8), (90.0, 1.0, 1)])
def test_minutes_become_epochs_that_fit_into_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, seconds: float, minutes: float, epochs: int
) -> None:
    monkeypatch.setattr(comparison, "_epoch_seconds", lambda *_: seconds)
    training = Budget(None, minutes, ["learning_rate=0.002"]).fine_tuning(bench, 0)
    assert training == {**bench.workload.fine_tune, "learning_rate": 0.002, "epochs": epochs}


@pytest.mark.slow
def test_an_epochs_time_is_measured_by_a_short_training(bench: Bench) -> None:
    assert comparison._epoch_seconds(bench, 0, bench.workload.fine_tune) > 0


@pytest.mark.slow
def test_a_budget_without_any_is_one_epoch(bench: Bench) -> None:
    assert Budget(None, None).fine_tuning(bench, 0)["epochs"] == 1
    assert Budget(7, 1.0).fine_tuning(bench, 0)["epochs"] == 7


@pytest.mark.slow
def test_more_than_one_bit_is_said_and_counted(bench: Bench) -> None:
    further = {"bases": 2, "bases_above": 0.0, "bases_budget": 8.0, "sweeps": 2}
    variants = {
        "bwnh": Variant("bwnh", "BWNH of bitpress", {"name": "bwnh", **further}),
        "bwn": VARIANTS["bwn"],
    }
    members = {"calibration_images": IMAGES, "seed": 0, "fine_tune": {"epochs": 1}}
    runs = {
        key: [run_variant(bench, variant, members, "validation")]
        for key, variant in variants.items()
    }
    assert runs["bwnh"][0].bits_per_weight == 2
    assert runs["bwn"][0].bits_per_weight == 1
    said = about_bits(bench, runs)
    assert "BWNH of bitpress has several bases in conv1 (2), " in said and "BWN has" not in said
    assert about_bits(bench, {"bwn": runs["bwn"]}) == ""


@pytest.mark.slow
def test_calibration_images_are_a_jobs(bench: Bench) -> None:
    mirrored = bench.workload.spec({"name": "bwnh"}, calibration_images=IMAGES)
    published = bench.workload.spec(bwnh_as_published(), calibration_images=IMAGES)
    assert len(bench.calibration_images(mirrored)) == 2 * IMAGES
    assert len(bench.calibration_images(published)) == IMAGES


def test_resnet20_is_the_one_adapted_to_these_images() -> None:
    workload = WORKLOADS["resnet20-cifar10"]
    assert workload.checkpoint == ROOT / "benchmarks/checkpoints/resnet20_cifar10_jpeg.safetensors"
    network = load_network(workload.spec({"name": "bwn"}), workload.checkpoint, 10)
    assert not network.training
    # It was trained on what other seeds hold out.
    assert "too high" in about_split(workload, "validation")[0]
    assert about_split(workload, "test") == []
    # So was the shipped VGG-9; the digits' network is trained on the spot.
    assert "too high" in about_split(WORKLOADS["vgg9-cifar10"], "validation")[0]
    assert about_split(WORKLOADS["digits"], "validation") == []


def test_a_mistake_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, told():
        find("vgg7", None, None)
    assert caught.value.exit_code == 1
    assert "vgg9-cifar10" in capsys.readouterr().out


def test_labels_are_counted_among_the_largest_logits() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(200, 20)).astype(np.float32)
    labels = random.integers(0, 20, 200)
    for count in (1, 5):
        largest = np.argsort(-logits, axis=1)[:, :count]
        expected = (largest == labels[:, None]).any(axis=1).mean()
        assert in_largest(logits, labels, count) == pytest.approx(expected)
    same = np.zeros((3, 4), dtype=np.float32)
    assert in_largest(same, np.array([0, 1, 3]), 2) == pytest.approx(2 / 3)


def test_published_accuracies_are_those_of_rows_that_there_are() -> None:
    for rows in PUBLISHED.values():
        assert set(rows) <= {"full_precision", *VARIANTS}
        assert all(top5 is None or 0 < top1 < top5 < 100 for top1, top5 in rows.values())
        # The paper's claim, wherever it compares.
        assert max(rows, key=lambda key: rows[key][0]) in ("full_precision", "bwnh_as_published")


def test_bwnh_as_published_depends_on_no_default_of_ours() -> None:
    fixed = set(bwnh_as_published())
    only_of_bases = {"bases_above", "bases_budget"}
    assert fixed | only_of_bases == set(BwnhParameters.model_fields)
    assert bwnh_as_published(["sweeps=3", "scale=false"]) == {
        **bwnh_as_published(),
        "sweeps": 3,
        "scale": False,
    }


def test_an_unknown_method_is_answered_with_those_there_are() -> None:
    with pytest.raises(InvalidSpec) as caught:
        chosen("bwnh,xnor")
    assert "sq_bwn" in str(caught.value.remedy)
    assert [variant.key for variant in chosen("bwn,bwnh,bwn")] == ["bwn", "bwnh"]


@pytest.mark.slow
def test_trying_out_leaves_the_test_images_alone(bench: Bench) -> None:
    splits = bench.splits(0)
    assert bench.split(0, "validation") is splits.val
    assert not set(splits.val.rows) & set(splits.test.rows)
    assert set(splits.test.rows) == set(bench.dataset.splits["test"])


@pytest.fixture
def few_cifar_images(tmp_path: Path) -> Path:
    """An archive with the first images of every class of both splits of CIFAR-10."""
    most = {"train": 40, "test": 10}
    taken: Counter[Path] = Counter()
    cut = tmp_path / "cut.tar"
    with (
        tarfile.open(SHARED / "data/cifar10-jpeg.tar.xz", "r|xz") as archive,
        tarfile.open(cut, "w") as kept,
    ):
        for member in archive:
            of_class = Path(member.name).parent
            if member.isfile() and taken[of_class] < most[of_class.parent.name]:
                taken[of_class] += 1
                kept.addfile(member, archive.extractfile(member))
    return cut


@pytest.mark.slow
@pytest.mark.cifar
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data (BITPRESS_SHARED) is absent")
def test_table_1_is_made_of_the_shipped_network(few_cifar_images: Path, tmp_path: Path) -> None:
    table1.main(
        dataset=few_cifar_images,
        checkpoint=SHARED / "checkpoints/vgg9_cifar10.safetensors",
        methods="bwn,bwnh_as_published",
        epochs=1,
        recipe=["batch_size=40"],
        calibration_images=40,
        threads=1,
        cache=tmp_path / "cache",
        output=tmp_path,
    )
    record = json.loads((tmp_path / "table1-vgg9-cifar10.json").read_text())
    figures = record["figures"]
    # Pixels that were normalised otherwise than in training would cost more than this.
    assert figures["full_precision"] > 0.7
    assert figures["bwnh_as_published.calibrated"] > figures["bwn.calibrated"] + 0.2
    table = read_table((tmp_path / "table1-vgg9-cifar10.md").read_text())
    assert [row[6:8] for row in table] == [["90.99", "-"], ["89.33", "1.66"], ["90.79", "0.20"]]


def test_a_layer_that_stops_early_keeps_its_last_loss() -> None:
    assert figure1._mean([(0.5, 0.25), (0.5, 0.75, 0.375)]) == [0.5, 0.5, 0.3125]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    app = typer.Typer()
    app.command()(COMMANDS[name])
    shown = CliRunner().invoke(app, ["--help"], terminal_width=100, env={"COLUMNS": "100"})
    assert shown.exit_code == 0
    for option in ("--workload", "--seeds", "--threads", "--output"):
        assert option in shown.output


def test_an_unknown_workload_is_answered_with_those_there_are() -> None:
    with pytest.raises(InvalidSpec) as caught:
        find("vgg7", None, None)
    assert "vgg9-cifar10" in str(caught.value.remedy)


def test_what_is_judged_by_validation_is_not_trained_on_it() -> None:
    training = {"epochs": 1, "train_on": "train_and_val"}
    with pytest.raises(InvalidSpec) as caught:
        find("digits", None, None).spec({"name": "bwnh"}, fine_tune=training)
    assert caught.value.field == "fine_tune.train_on"


def test_a_workload_without_its_data_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec) as caught:
        load(find("vgg9-cifar100", None, None), tmp_path)
    assert "--dataset" in str(caught.value.remedy)
    with pytest.raises(InvalidSpec) as caught:
        load(find("vgg9-cifar10", None, tmp_path / "no.zip"), tmp_path)
    assert "no.zip" in caught.value.detail


def test_a_page_names_its_figures_plot_and_command(tmp_path: Path) -> None:
    drawn: list[Path] = []

    def draw(file: Path) -> None:
        drawn.append(file)
        file.touch()

    table = Table(("method", "accuracy"), [("bwnh", "90.00"), ("`bwn`", "80.00")])
    Result("table9", "Table 9", ("Why.",), table, {"bwnh.accuracy": 0.9}, [3], draw).write(tmp_path)
    assert drawn == [tmp_path / "table9.png"]
    page = (tmp_path / "table9.md").read_text()
    assert read_table(page) == [["bwnh", "90.00"], ["`bwn`", "80.00"]]
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert (tmp_path / link).is_file()
    record = json.loads((tmp_path / "table9.json").read_text())
    assert record["figures"] == {
        "bwnh.accuracy": 0.9,
        "threads": torch.get_num_threads(),
    }
    assert record["command"] in page
    assert record["hardware"]["processor"] in page


def panel_of_lines() -> Panel:
    series = [Series("one", [0, 1], [0.1, 0.2], [0.05, 0.1], [0.2, 0.3]), Series("two", [0], [1.0])]
    return lines(series, title="t", x_label="x", y_label="y", levels=[Level("all", 0.5)])


def test_equal_figures_give_equal_pictures_whatever_a_user_configured(tmp_path: Path) -> None:
    import matplotlib

    plot(tmp_path / "one.png", (3.0, panel_of_lines()))
    with matplotlib.rc_context({"font.size": 30.0, "axes.facecolor": "black"}):
        plot(tmp_path / "two.png", (3.0, panel_of_lines()))
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.parametrize("log", [False, True])
def test_lines_fill_their_panel(log: bool) -> None:
    axes = Figure().subplots()
    values = [0.4, 0.02, 0.0001]
    lines([Series("one", [0, 1, 2], values)], title="t", x_label="x", y_label="y", log=log)(axes)
    low, high = axes.get_ylim()
    assert low < min(values) and max(values) < high
    # What a margin adds, and no more.
    extent = np.log10([low, high, *values]) if log else np.array([low, high, *values])
    assert np.ptp(extent[2:]) > 0.8 * np.ptp(extent[:2])


def test_dots_with_missing_values_are_drawn(tmp_path: Path) -> None:
    content = Dots(["a", "b"], {"before": [0.5, None], "after": [0.7, 0.8]}, {"after": [0.6, 0.7]})
    panel = dots(content, title="t", x_label="accuracy, %", level=Level("full", 0.9))
    plot(tmp_path / "dots.png", (2.0, panel), (3.0, panel_of_lines()))
    check_picture(tmp_path / "dots.png")


def seen_without_green(colour: str) -> np.ndarray:  # type: ignore[type-arg]
    """Return a colour as a deuteranope sees it, linear RGB (Vienot, Brettel and Mollon, 1999)."""
    levels = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    red, green, blue = np.where(
        levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4
    )
    mixed = 0.29275 * red + 0.70725 * green
    return np.array([mixed, mixed, -0.02234 * red + 0.02234 * green + blue])


def test_neighbouring_colours_differ_without_red_and_green() -> None:
    from benchmarks.paper.charts import BLUE, GREEN, VERMILION

    used = [seen_without_green(colour) for colour in (BLUE, VERMILION, GREEN)]
    for index, one in enumerate(used):
        for other in used[index + 1 :]:
            assert np.abs(one - other).max() > 0.1

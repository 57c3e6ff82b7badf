"""``python -m benchmarks.cpu``: rivals run the same network, and every figure has its name."""

import json
import os
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import cpu
from benchmarks.latency import images, report
from benchmarks.latency.alternation import alternate
from benchmarks.latency.layer_shapes import Geometry, distinct, layers, network_seconds
from benchmarks.latency.nets import Net, Source, make_net
from benchmarks.latency.ratios import ratios
from benchmarks.latency.runtimes import RUNTIMES, loader
from models import runtime
from models.lowering import lower
from models.plan import INPUT
from models.preprocessing import InputSpec
from models.runtime.flat_program import Type
from models.runtime.kernel_choice import CACHE_DIR_VARIABLE, cache_folder
from models.runtime.reference import ReferenceRuntime
from store.errors import Unavailable

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

needs_engine = pytest.mark.skipif(
    "cpu" not in runtime.available(), reason="needs the CPU engine's library"
)

TINY = Source("digits_cnn", InputSpec(1, 8, 8, (0.5,), (0.25,)), 10)


@pytest.fixture(scope="module")
def tiny() -> Net:
    return make_net("tiny", TINY)


@pytest.fixture
def only_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "SOURCES", {"tiny": TINY})


class Everything(nn.Module):
    """An operation of every kind that both a plan and ONNX have."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2)
        self.slope = nn.PReLU(6)
        self.second = nn.Conv2d(6, 6, (1, 3), padding=(0, 1))
        self.norm = nn.BatchNorm2d(12)
        self.last = nn.Linear(15 * 3 * 3, 5)
        assert self.norm.running_mean is not None
        for values in (self.slope.weight, self.norm.weight, self.norm.running_mean):
            nn.init.normal_(values)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.first(x))
        x = functional.hardtanh(self.second(x) + x)
        x = torch.cat([functional.max_pool2d(x, 3, 2, 1), functional.avg_pool2d(x, 3, 2, 1)], 1)
        x = functional.relu(self.norm(x))
        x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 1))
        x = functional.relu(x + functional.hardtanh(x))
        result: Tensor = self.last(x.flatten(1))
        return result


def onnx_logits(model: object, x: Tensor, folder: Path) -> Tensor:
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")
    return torch.from_numpy(loader("ort_fp32")(folder / "model.onnx", 1)(x.numpy()))


def test_every_operator_is_the_same_in_onnx(tmp_path: Path) -> None:
    from benchmarks.latency.onnx_graph import onnx_model

    torch.manual_seed(0)
    network = Everything().eval()
    plan, tensors = lower(network, (4, 11, 11))
    operators = {node.op for node in plan.nodes}
    assert {"affine", "add", "concat", "subsample", "pad_channels", "avg_pool2d"} <= operators
    x = torch.randn(3, 4, 11, 11)
    found = onnx_logits(onnx_model(plan, tensors), x, tmp_path)
    torch.testing.assert_close(found, network(x).detach(), rtol=1e-5, atol=1e-5)


def test_a_float_plan_is_the_same_in_onnx(tiny: Net, tmp_path: Path) -> None:
    from benchmarks.latency.onnx_graph import onnx_model

    plan, tensors = lower(tiny.network, tiny.plan.input_shape)
    model = onnx_model(plan, tensors)
    assert [value.name for value in model.graph.input] == [INPUT]
    x = torch.from_numpy(tiny.timed)
    found = onnx_logits(model, x, tmp_path)
    torch.testing.assert_close(found, tiny.network(x), rtol=1e-5, atol=1e-5)


def test_packed_bits_are_not_written_as_onnx(tiny: Net) -> None:
    from benchmarks.latency.onnx_graph import onnx_model

    for artifact in (tiny.w1a32, tiny.w1a8):
        with pytest.raises(ValueError, match=r"bits|quantize"):
            onnx_model(artifact.plan, artifact.tensors)


def test_all_layers_are_binary_and_rounding_changes_little(tiny: Net) -> None:
    assert {node.weight for node in tiny.plan.nodes if hasattr(node, "weight")} == {"bits"}
    x = torch.from_numpy(tiny.timed)
    exact, rounded = (ReferenceRuntime(one).run(x) for one in (tiny.w1a32, tiny.w1a8))
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).square().sum() < 0.01 * exact.square().sum()


def test_images_to_time_on_are_not_those_of_calibration() -> None:
    fed = TINY.fed
    calibration, timed = (images.images(fed, split, 4) for split in ("train", "test"))
    assert not any(torch.equal(*pair) for pair in product(*calibration.batches(), *timed.batches()))


def test_every_runtime_gets_its_turns() -> None:
    calls: list[str] = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    timed = alternate(runs, 0.0, rounds=4, settle_s=0.0)
    # In each of the rounds one run to warm up and one that is timed.
    assert Counter(calls) == dict.fromkeys("abc", 8)
    assert {name: len(times) for name, times in timed.items()} == dict.fromkeys("abc", 4)
    orders = {tuple(dict.fromkeys(calls[start : start + 6])) for start in range(0, 24, 6)}
    assert len(orders) == 4


def test_blocks_last_as_long_as_asked() -> None:
    now = 0.0

    def run() -> None:
        nonlocal now
        now += 0.25

    timed = alternate({"a": run}, 4.0, rounds=2, settle_s=0.0, clock=lambda: now)
    assert timed["a"] == [0.25] * 16
    # Two blocks of 2 s, before each of which runs a share of it to warm up.
    assert now == 2 * (2.0 + 0.5)


def test_ratios_say_how_many_times_as_fast() -> None:
    nets = ["vgg9", "resnet18"]
    figures = {
        f"{net}.t{threads}.b1.{name}_ms": 8.0 / threads
        for net, threads, name in product(nets, (1, 2), RUNTIMES)
    }
    figures |= {f"{net}.t1.b1.w1a8_ms": ms for net, ms in (("vgg9", 4.0), ("resnet18", 1.0))}
    figures |= {"resnet18.w1a8_resident_mib": 5.0, "resnet18.ort_int8_resident_mib": 20.0}
    found = ratios(figures, nets, [1, 2], [1])
    assert found["vgg9.t1.b1.w1a8_vs_ort_int8"] == 2
    assert found["vgg9_resnet18.t1.b1.w1a8_vs_ort_int8"] == pytest.approx(4)
    assert found["resnet18.b1.ort_fp32_t2_vs_t1"] == 2
    assert found["resnet18.w1a8_vs_ort_int8_resident"] == 0.25
    assert "vgg9.w1a8_vs_ort_int8_resident" not in found


def test_layers_have_the_geometry_of_the_plan(tiny: Net) -> None:
    found = {one: layers(getattr(tiny, one)) for one in ("w1a8", "w1a32")}
    for of_net in found.values():
        assert sum(layer.geometry.macs for layer in of_net) == tiny.plan.macs
    shapes = distinct([*found["w1a8"], *found["w1a32"]])
    assert all(
        [layer.source.type for layer in both] == [Type.U8, Type.F32] for both in shapes.values()
    )
    assert len({str(geometry) for geometry in shapes}) == len(shapes)
    seconds = {geometry: {"lookup_i16": 2.0, "expand_i8": 3.0} for geometry in shapes}
    count = len(found["w1a8"])
    assert network_seconds(found["w1a8"], seconds) == {
        "lookup_i16": 2 * count,
        "expand_i8": 3 * count,
        "best_i8": 2 * count,
    }


def test_layers_that_differ_in_their_border_alone_have_two_names() -> None:
    pairs = {"kernel": (3, 3), "stride": (1, 1), "dilation": (1, 1)}
    narrow, wide = (
        Geometry(3, 5, 4, 7, **pairs, padding=(n, n), groups=1, bases=1) for n in (0, 1)
    )
    assert str(narrow) == "c3x5x4_n7_k3x3_s1x1_p0x0"
    assert str(wide) == "c3x5x4_n7_k3x3_s1x1_p1x1"


def test_rows_of_the_kernel_outside_the_map_do_not_count_as_done() -> None:
    pairs = {"stride": (2, 1), "padding": (2, 1), "dilation": (2, 1)}
    geometry = Geometry(3, 5, 4, 7, kernel=(3, 3), groups=1, bases=2, **pairs)
    ones = torch.ones(1, 1, 5, 4)
    product = functional.conv2d(ones, torch.ones(1, 1, 3, 3), **pairs)
    assert geometry.output == product.shape[2:]
    assert geometry.macs == 2 * 7 * 3 * 9 * product.numel()
    # Of the middle column, which no border at the sides reaches.
    inside = functional.conv2d(ones, torch.ones(1, 1, 3, 1), **(pairs | {"padding": (2, 0)}))
    assert geometry.macs_inside == 2 * 7 * 3 * 3 * int(inside.sum())


def test_wrong_numbers_are_not_timed(tiny: Net) -> None:
    x = torch.from_numpy(tiny.timed)
    runs = {
        "torch_fp32": lambda _: tiny.network(x).numpy(),
        "w1a32": lambda _: ReferenceRuntime(tiny.w1a32).run(x).numpy(),
        "w1a8": lambda _: ReferenceRuntime(tiny.w1a8).run(x).numpy(),
    }
    assert 0 < cpu.agreement(tiny, runs)["tiny.w1a8_logit_error"] < 0.01
    with pytest.raises(RuntimeError, match="w1a8 is not what the reference"):
        cpu.agreement(tiny, {**runs, "w1a8": runs["w1a32"]})
    with pytest.raises(RuntimeError, match="ort_fp32 is another network"):
        cpu.agreement(tiny, {**runs, "ort_fp32": runs["w1a32"]})


def test_the_tables_name_quotients_as_they_are_made() -> None:
    figures = {f"vgg9.t1.b1.{name}_ms": 6.0 for name in RUNTIMES} | {"vgg9.t1.b1.w1a8_ms": 2.0}
    figures |= ratios(figures, ["vgg9"], [1], [1])
    head, row = report.latency_tables(figures, ["vgg9"], [1], [1]).splitlines()[-2:]
    assert "ort_int8 / w1a8  ort_fp32 / w1a32" in head
    assert row.split()[1:9] == ["6.00", "2.00", *["6.00"] * 4, "3.00", "1.00"]


def test_the_layers_of_a_network_stand_beside_the_whole_of_it_on_a_rival() -> None:
    figures = {"ceiling.lookup_i16_gmacs": 500.0, "vgg9.layers.lookup_i16_ms": 0.25}
    (row,) = report.layer_tables(figures, ["vgg9"]).splitlines()[-1:]
    assert row.split() == ["vgg9", "0.250", "-", "-"]
    figures["vgg9.t1.b1.ort_int8_ms"] = 0.5
    head, row = report.layer_tables(figures, ["vgg9"]).splitlines()[-2:]
    assert head.endswith("ort_int8, whole")
    assert row.split() == ["vgg9", "0.250", "-", "0.500"]


@needs_engine
@pytest.mark.usefixtures("only_tiny")
def test_figures_have_the_names_that_they_are_known_by(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "record.json"
    cpu.main("tiny", thread_counts="1", batches="1,3", seconds=0.0, memory=False, json=record)
    written = json.loads(record.read_text())
    assert written["kernels"] == runtime.kernels_of("cpu")
    assert written["networks"] == {"tiny": make_net("tiny", TINY).about}
    assert written["load_average"] >= 0
    assert "onnx" in written["versions"]
    figures = written["figures"]
    for name, batch in product(RUNTIMES, (1, 3)):
        assert figures[f"tiny.t1.b{batch}.{name}_ms"] > 0
        assert figures[f"tiny.t1.b{batch}.{name}_gmacs"] > 0
    assert figures["tiny.t1.b1.w1a8_vs_ort_int8"] > 0
    assert figures["tiny.ort_int8_agreement"] > 0.8
    printed = capsys.readouterr().out
    assert "1 thread, batches of 3" in printed


def test_kernels_are_chosen_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_DIR_VARIABLE, "/somewhere")
    with cpu.choices_made_here(tmp_path):
        assert cache_folder().parent == tmp_path
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv(CACHE_DIR_VARIABLE)
    with cpu.choices_made_here(tmp_path):
        assert cache_folder().parent == tmp_path
    assert CACHE_DIR_VARIABLE not in os.environ


@needs_engine
@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(tiny: Net, tmp_path: Path) -> None:
    from benchmarks.latency.files import write_files

    figures = cpu.sizes(tiny, write_files(tiny, tmp_path))
    for name in RUNTIMES:
        assert figures[f"tiny.{name}_bytes"] > 0
        assert 0 <= figures[f"tiny.{name}_loaded_mib"] <= figures[f"tiny.{name}_resident_mib"]


@pytest.mark.parametrize(
    ("option", "value"), [("nets", "vgg99"), ("thread_counts", "0"), ("batches", "1,x")]
)
def test_what_cannot_be_measured_is_refused(option: str, value: str) -> None:
    options = {"nets": "vgg9", "thread_counts": "1", "batches": "1", option: value}
    with pytest.raises(typer.BadParameter):
        cpu.main(**options)


def test_a_missing_rival_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError("No module named 'onnxruntime'")

    monkeypatch.setattr(cpu, "loader", missing)
    with pytest.raises(Unavailable, match="onnxruntime"):
        cpu.require_rivals()


def test_the_reference_runtime_is_not_measured_in_the_engines_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing() -> None:
        raise Unavailable("There is no library.", remedy="Install a compiler.")

    monkeypatch.setattr("models.runtime.cpu.native_library", missing)
    with pytest.raises(Unavailable, match="no library") as refusal:
        cpu.main("vgg9")
    assert refusal.value.remedy == "Install a compiler."

"""The bodies of the stages on a real network and real images, in this process."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save_file

from models import artifact, registry, runtime
from models.lowering import lower
from store.datasets import DatasetStore
from store.errors import (
    BitpressError,
    CheckpointMismatch,
    InvalidSpec,
    NotFound,
    Unavailable,
)
from store.specs import METHODS, CompressSpec, parse_spec
from store.uploads import UploadStore
from worker.calibration import load_layer
from worker.data import ImageSet
from worker.fine_tuning import training_images
from worker.forms import logits_of_forms
from worker.gate import judge
from worker.job_files import FileRef, JobFiles
from worker.networks import input_spec
from worker.settings import WorkerSettings
from worker.stage_context import StageContext
from worker.stages import evaluate as evaluation_stage
from worker.stages import pack as packing_stage
from worker.stages.calibrate import calibrate
from worker.stages.evaluate import evaluate
from worker.stages.fine_tune import fine_tune
from worker.stages.pack import pack
from worker.stages.prepare import prepare
from worker.stages.surroundings import dataset_of, networks_of, splits_of
from worker.training.images import TrainingImages
from worker.training.processes import this_device

CLASSES = ("dark", "light", "striped")
LAYERS = ["features.0", "features.3", "features.7", "classifier"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> WorkerSettings:
    """A data directory with the dataset ``patterns``: 24 grey images of 8 x 8 pixels per class."""
    folder = tmp_path_factory.mktemp("stages")
    settings = WorkerSettings(data_dir=folder / "data", worker_threads=1)
    random = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "patterns.zip", "w") as file:
        for label, name in enumerate(CLASSES):
            for number in range(24):
                pixels = random.integers(0, 96, (8, 8), dtype=np.uint8)
                pixels[:: 2 if label == 2 else 1] += np.uint8(64 * label)
                image = io.BytesIO()
                Image.fromarray(pixels).save(image, "PNG")
                file.writestr(f"{name}/{number:03}.png", image.getvalue())
    store = DatasetStore(settings.datasets_dir, settings.dataset_limits)
    store.ingest(folder / "patterns.zip", "patterns")
    return settings


def upload(settings: WorkerSettings, classes: int = len(CLASSES)) -> str:
    """Store a checkpoint of digits_cnn for so many classes; return its digest."""
    torch.manual_seed(1)
    size = {"channels": 1, "height": 8, "width": 8}
    network = registry.build("digits_cnn", **size, classes=classes, parameters={})
    with torch.no_grad():
        # Batch norm of a trained network is no identity.
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2.0)
                module.bias.normal_()
    path = settings.data_dir / "checkpoint.safetensors"
    save_file(network.state_dict(), path)
    uploads = UploadStore(settings.uploads_dir, settings.max_checkpoint_bytes)
    with uploads.receive() as writer:
        writer.write(path.read_bytes())
        return writer.commit().digest


def context_of(settings: WorkerSettings, job_id: str, **changes: Any) -> StageContext:
    spec = {
        "name": "patterns",
        "architecture": "digits_cnn",
        "checkpoint": upload(settings),
        "dataset": "patterns",
        "input": {"channels": 1, "height": 8, "width": 8, "mean": [0.5], "std": [0.25]},
        "method": {"name": "bwnh", "sweeps": 3},
        "calibration_images": 20,
        **changes,
    }
    return StageContext(job_id, parse_spec(spec), settings, JobFiles(settings.data_dir, job_id))


def silent(_fraction: float, _message: str, _details: object = None) -> None:
    """Report to nobody."""


class Run:
    """Runs steps as the pipeline does, each stage in what could be a process of its own."""

    def __init__(self, context: StageContext) -> None:
        self.context = context
        self.files: dict[str, Any] = {}

    def fresh(self) -> StageContext:
        """Return the context as a new process has it: nothing in memory, nothing checked."""
        return replace(
            self.context, files=JobFiles(self.context.settings.data_dir, self.context.job_id)
        )

    def step(self, step: Any, **arguments: Any) -> dict[str, Any]:
        result: dict[str, Any] = step({**arguments, "files": dict(self.files)}, silent)
        # Through JSON, like everything that DBOS records.
        result = json.loads(json.dumps(result))
        self.files.update(result.get("files", {}))
        return result

    def all(self, *, interrupted: bool = False) -> Mapping[str, Any]:
        """Run a whole job; interrupted, every layer has a process of its own."""
        self.prepared = prepared = self.step(prepare(self.fresh())["prepare"])
        steps = calibrate(self.fresh())
        self.layers: list[dict[str, Any]] = []
        layers = self.layers
        for name in prepared["layers"]:
            if interrupted:
                steps = calibrate(self.fresh())
            layers.append({**self.step(steps["layer"], name=name), "seconds": 0.5})
        if self.context.spec.method.recalibrate_batch_norm == "end":
            if interrupted:
                steps = calibrate(self.fresh())
            self.step(steps["batch_norm"])
        if self.context.spec.activation_bits < 32:
            if interrupted:
                steps = calibrate(self.fresh())
            self.step(steps["activations"])
        epochs = self.fine_tuned(interrupted)
        self.step(pack(self.fresh())["pack"])
        known = {"prepared": prepared, "layers": layers, "epochs": epochs}
        self.evaluated = self.step(evaluate(self.fresh())["evaluate"], **known)
        return dict(json.loads(self.read("measured")))

    def fine_tuned(self, interrupted: bool) -> list[dict[str, Any]]:
        """Run the stage fine_tune, where the job has one; return the records of its epochs."""
        epochs: list[dict[str, Any]] = []
        if self.context.spec.fine_tune is None:
            return epochs
        steps = fine_tune(self.fresh())
        for epoch in range(1, self.context.spec.fine_tune.epochs + 1):
            if interrupted:
                steps = fine_tune(self.fresh())
            epochs.append(self.step(steps["epoch"], epoch=epoch))
            del epochs[-1]["files"]
        self.step((fine_tune(self.fresh()) if interrupted else steps)["finish"])
        return epochs

    def read(self, role: str) -> bytes:
        return self.fresh().files.resolve(FileRef.from_json(self.files[role])).read_bytes()


def test_a_job_measures_what_it_made(settings: WorkerSettings) -> None:
    run = Run(context_of(settings, "whole"))
    report = run.all()
    packed = artifact.decode(run.read("artifact"))
    assert packed.labels == CLASSES
    assert set(report["accuracy"]) == {"full_precision", "calibrated", "packed"}
    assert packed.accuracy == report["accuracy"]
    assert report["digests"]["artifact"] == artifact.digest(run.read("artifact"))
    assert report["bytes"]["packed"] == len(run.read("artifact"))
    assert report["compression_ratio"] == report["bytes"]["float"] / report["bytes"]["packed"]
    assert report["parity"]["top1_agreement"] == 1.0
    assert report["parity"]["largest_logit_difference"] <= 1e-4 * report["parity"]["largest_logit"]
    assert report["runtime"] == runtime.choose()
    assert report["kernels"] == runtime.kernels_of(report["runtime"])
    assert [layer["name"] for layer in report["layers"]] == LAYERS
    assert all(layer["binary"] and len(layer["losses"]) > 1 for layer in report["layers"])
    assert [layer["kind"] for layer in report["layers"]] == ["conv2d"] * 3 + ["linear"]
    # Every layer's bits are those that calibration found.
    codes = artifact.binary_codes(packed)
    for name in LAYERS:
        path = run.fresh().files.resolve(FileRef.from_json(run.files[f"layer:{name}"]))
        assert np.array_equal(codes[name], load_layer(path).codes.numpy())
    answers = json.loads(run.read("predictions"))
    assert answers["split"] == "test"
    assert len(answers["images"]) == report["test_images"]
    right = sum(image["label"] == image["class"] for image in answers["images"])
    assert right / len(answers["images"]) == report["accuracy"]["packed"]


def test_a_job_computes_where_its_worker_is_to(
    settings: WorkerSettings, simulated_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lowered(*arguments: Any) -> Any:
        # torch.export has simulations of its own.
        with simulated_gpu.away(), monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: False)
            return lower(*arguments)

    for stage in (evaluation_stage, packing_stage):
        monkeypatch.setattr(stage, "lower", lowered)
    results = {}
    for device in ("cpu", "cuda"):
        there = settings.model_copy(update={"device": device, "runtime": "reference"})
        method = {"name": "bwnh", "sweeps": 1}
        run = Run(context_of(there, device, method=method, activation_bits=8, max_accuracy_drop=1))
        report = run.all()
        assert report["device"] == device
        assert {layer["device"] for layer in report["layers"]} == {device}
        results[device] = run, report
    (on_cpu, expected), (on_gpu, report) = results["cpu"], results["cuda"]
    origin = artifact.decode(on_gpu.read("artifact")).provenance
    assert origin["calibration_devices"] == ["cuda"]
    assert "calibration_devices" not in artifact.decode(on_cpu.read("artifact")).provenance
    assert report["accuracy"] == expected["accuracy"]
    for role in ("layer:classifier", "activations"):
        assert on_gpu.read(role) == on_cpu.read(role)
    for one, other in zip(report["layers"], expected["layers"], strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-5)


@pytest.mark.parametrize(("serving", "device"), [("cuda", "cuda"), ("cpu", "cpu")])
def test_the_original_is_timed_where_the_packed_plan_runs(
    serving: str, device: str, simulated_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = torch.device("cpu" if device == "cuda" else "cuda:0")
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten()).to(elsewhere)
    met: list[str] = []
    network[0].register_forward_pre_hook(lambda _, fed: met.append(fed[0].device.type))
    served = SimpleNamespace(name=serving)
    answers = evaluation_stage._original(network, served)(torch.ones(1, 1, 3, 3))
    assert (answers.device.type, met) == ("cpu", [device])


def test_a_gpu_that_is_not_there_is_missed_before_anything_is_done(
    settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = Run(context_of(settings.model_copy(update={"device": "cuda"}), "nowhere"))
    with pytest.raises(Unavailable, match="none that torch can use"):
        run.step(prepare(run.fresh())["prepare"])


def right_on_validation_images(run: Run, predict: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Return the share of the job's validation images that ``predict`` answers rightly."""
    val = splits_of(run.fresh(), silent).val
    with torch.inference_mode():
        (images,) = val.batches(input_spec(run.context.spec), len(val))
        answers = predict(images).argmax(dim=1).numpy()
    return float(np.mean(answers == val.labels))


def test_the_gate_judges_what_will_be_served_by_the_validation_images(
    settings: WorkerSettings,
) -> None:
    run = Run(context_of(settings, "gated", max_accuracy_drop=1))
    gate = run.all()["gate"]
    assert gate == run.evaluated["gate"]
    networks = networks_of(run.fresh(), dataset_of(run.fresh()))
    before = right_on_validation_images(run, networks.full_precision(run.files))
    served = runtime.load(artifact.decode(run.read("artifact")), runtime.choose())
    after = right_on_validation_images(run, served.run)
    assert (gate["full_precision"], gate["packed"]) == (before, after)
    assert gate["drop"] == pytest.approx(before - after)
    assert gate["images"] == len(splits_of(run.fresh(), silent).val)
    assert gate["passed"] and gate["max_accuracy_drop"] == 1


def test_a_model_that_loses_too_much_is_reported_all_the_same(
    settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No network is so much better than its original.
    monkeypatch.setattr(evaluation_stage, "judge", lambda _limit, *given: judge(-2, *given))
    run = Run(context_of(settings, "too-bad", max_accuracy_drop=0))
    report = run.all()
    assert report["gate"] == run.evaluated["gate"]
    assert report["gate"]["passed"] is False
    assert {"accuracy", "bytes", "classes", "latency"} <= set(report)
    assert set(run.evaluated["files"]) == {"artifact", "predictions", "measured"}


def test_without_a_gate_nothing_but_the_test_images_is_answered(
    settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[int] = []

    def noting(forms: Any, images: ImageSet, *rest: Any) -> Any:
        answered.append(len(images))
        return logits_of_forms(forms, images, *rest)

    monkeypatch.setattr(evaluation_stage, "logits_of_forms", noting)
    run = Run(context_of(settings, "gateless"))
    report = run.all()
    assert report["gate"] is None and run.evaluated["gate"] is None
    assert answered == [report["test_images"]]


def test_the_latency_stands_in_the_report_and_not_in_the_artifact(
    settings: WorkerSettings,
) -> None:
    run = Run(context_of(settings, "timed"))
    latency = run.all()["latency"]
    assert (latency["threads"], latency["batch"]) == (settings.worker_threads, 1)
    assert latency["repeats"] >= 3
    assert latency["packed_ms"] > 0
    # None where this machine has other things to do.
    assert latency["speedup"] in (None, latency["float_ms"] / latency["packed_ms"])
    assert b"latency" not in run.read("artifact") and b"_ms" not in run.read("artifact")


def test_progress_of_an_evaluation_only_grows(settings: WorkerSettings) -> None:
    run = Run(context_of(settings, "progressing", max_accuracy_drop=1))
    run.all()
    seen: list[float] = []
    known = {"prepared": run.prepared, "layers": run.layers, "epochs": []}
    evaluate(run.fresh())["evaluate"](
        {**known, "files": run.files}, lambda fraction, *_: seen.append(fraction)
    )
    assert seen == sorted(seen) and seen[-1] == 1.0
    assert 0 < min(fraction for fraction in seen if fraction) < 0.9


def test_an_artifact_tells_where_it_comes_from_but_not_which_job_made_it(
    settings: WorkerSettings,
) -> None:
    run = Run(context_of(settings, "secret-job-id"))
    run.all()
    packed = artifact.decode(run.read("artifact"))
    assert b"secret-job-id" not in run.read("artifact")
    assert packed.provenance["digests"]["checkpoint"] == run.context.spec.checkpoint
    assert "checkpoint" not in packed.provenance["spec"]
    assert packed.provenance["spec"]["method"]["sweeps"] == 3
    assert set(packed.provenance["versions"]) == {"bitpress", "torch", "numpy"}


@pytest.mark.parametrize("recalibrate", ["never", "end", "each_layer"])
def test_a_job_interrupted_after_every_layer_gives_the_same_bytes(
    settings: WorkerSettings, recalibrate: str
) -> None:
    method = {"name": "bwnh", "sweeps": 3, "recalibrate_batch_norm": recalibrate}
    smooth = Run(context_of(settings, f"smooth-{recalibrate}", method=method))
    broken = Run(context_of(settings, f"broken-{recalibrate}", method=method))
    smooth.all()
    broken.all(interrupted=True)
    for role in ("artifact", "predictions"):
        assert smooth.read(role) == broken.read(role)


FINE_TUNE = {"epochs": 3, "batch_size": 8, "average": 0.5, "precision": "float32"}


@pytest.mark.parametrize("images", ["train", "train_and_val"])
def test_a_job_trains_on_the_images_it_names(
    settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch, images: str
) -> None:
    seen: list[ImageSet] = []

    def spy(train: ImageSet, spec: CompressSpec) -> TrainingImages:
        seen.append(train)
        return training_images(train, spec)

    monkeypatch.setattr("worker.stages.fine_tune.training_images", spy)
    run = Run(context_of(settings, images, fine_tune={**FINE_TUNE, "train_on": images}))
    run.all()
    splits = splits_of(run.context, silent)
    wanted = set(splits.train.names) | (set(splits.val.names) if images != "train" else set())
    assert [set(trained.names) for trained in seen] == [wanted]


def test_a_job_tells_what_fine_tuning_did(settings: WorkerSettings) -> None:
    run = Run(context_of(settings, "tuned", fine_tune=FINE_TUNE))
    report = run.all()
    packed = artifact.decode(run.read("artifact"))
    assert list(report["accuracy"]) == ["full_precision", "calibrated", "fine_tuned", "packed"]
    assert packed.accuracy == report["accuracy"]
    # What was packed is the network as it was trained, not as it was calibrated.
    assert report["accuracy"]["packed"] == report["accuracy"]["fine_tuned"]
    assert report["parity"]["top1_agreement"] == 1.0
    assert [epoch["epoch"] for epoch in report["fine_tuning"]["epochs"]] == [1, 2, 3]
    for epoch in report["fine_tuning"]["epochs"]:
        assert epoch["loss"] > 0 and 0 <= epoch["train_accuracy"] <= 1
        assert epoch["images_per_second"] > 0 and epoch["learning_rate"] > 0
        assert (epoch["device"], epoch["products"]) == (this_device().type, "float32")
    assert packed.provenance["spec"]["fine_tune"]["epochs"] == 3
    trained_on = {"device": this_device().type, "products": "float32"}
    assert packed.provenance["training"] == [trained_on]
    codes = artifact.binary_codes(packed)
    calibrated = {
        name: load_layer(run.fresh().files.resolve(FileRef.from_json(run.files[f"layer:{name}"])))
        for name in LAYERS
    }
    assert any(not np.array_equal(codes[name], calibrated[name].codes.numpy()) for name in LAYERS)


@pytest.mark.parametrize("augmentation", ["flip_and_shift", "random_resized_crop"])
def test_a_job_interrupted_after_every_epoch_gives_the_same_bytes(
    settings: WorkerSettings, augmentation: str
) -> None:
    wanted = {**FINE_TUNE, "augmentation": augmentation}
    name = augmentation.replace("_", "-")
    smooth = Run(context_of(settings, f"smooth-{name}", fine_tune=wanted))
    broken = Run(context_of(settings, f"broken-{name}", fine_tune=wanted))
    smooth.all()
    broken.all(interrupted=True)
    for role in ("training", "fine_tuned", "artifact", "predictions"):
        assert smooth.read(role) == broken.read(role)


def test_an_epoch_repeated_before_it_was_recorded_leaves_the_same_state(
    settings: WorkerSettings,
) -> None:
    run = Run(context_of(settings, "repeated", fine_tune=FINE_TUNE))
    run.all()
    folder = run.context.files.folder / "training"
    assert sorted(path.name for path in folder.iterdir()) == [
        "0002.safetensors",
        "0003.safetensors",
    ]
    last = run.read("training")
    # As after a crash between the file and its record: the record still names the epoch before.
    state = run.fresh().files.write(
        "again", lambda p: p.write_bytes((folder / "0002.safetensors").read_bytes())
    )
    run.files["training"] = state.to_json()
    run.step(fine_tune(run.fresh())["epoch"], epoch=3)
    assert run.read("training") == last


def test_a_batch_may_have_as_many_images_as_are_trained_on(settings: WorkerSettings) -> None:
    tuning = {"epochs": 1, "batch_size": 60}  # of 48 images of train and 12 of val
    run = Run(context_of(settings, "large", fine_tune=tuning))
    with pytest.raises(InvalidSpec, match="48 training images"):
        run.step(prepare(run.fresh())["prepare"])
    run = Run(context_of(settings, "larger", fine_tune={**tuning, "train_on": "train_and_val"}))
    assert run.step(prepare(run.fresh())["prepare"])["layers"]


def test_a_batch_that_the_processes_cannot_divide_is_refused_before_anything_is_done(
    settings: WorkerSettings,
) -> None:
    three = settings.model_copy(update={"training_processes": 3})
    run = Run(context_of(three, "indivisible", fine_tune={"epochs": 1, "batch_size": 8}))
    with pytest.raises(InvalidSpec) as caught:
        run.step(prepare(run.fresh())["prepare"])
    assert caught.value.field == "spec.fine_tune.batch_size"
    assert "multiple of 3" in (caught.value.remedy or "")


def test_more_processes_than_gpus_are_refused_before_anything_is_done(
    settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    four = settings.model_copy(update={"training_processes": 4})
    run = Run(context_of(four, "crowded", fine_tune={"epochs": 1, "batch_size": 8}))
    with pytest.raises(Unavailable, match=r"4 processes.* 2 GPUs") as caught:
        run.step(prepare(run.fresh())["prepare"])
    assert "at most 2" in (caught.value.remedy or "")
    untrained = Run(context_of(four, "untrained"))
    assert untrained.step(prepare(untrained.fresh())["prepare"])["layers"] == LAYERS


@pytest.mark.slow
def test_an_epoch_on_two_processes_comes_to_the_same_within_rounding(
    settings: WorkerSettings,
) -> None:
    together = settings.model_copy(update={"training_processes": 2})
    # One step: after it, a weight next to zero may have another sign, and all that follows differs.
    wanted = {"epochs": 1, "batch_size": 48, "optimizer": "sgd", "precision": "float32"}
    losses, states = [], []
    for chosen, job_id in ((settings, "alone"), (together, "together")):
        run = Run(context_of(chosen, job_id, fine_tune=wanted))
        (epoch,) = run.all()["fine_tuning"]["epochs"]
        losses.append(epoch["loss"])
        origin = artifact.decode(run.read("artifact")).provenance
        assert origin.get("training_processes", 1) == chosen.training_processes
        states.append(load(run.read("training")))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        if name.startswith("student/"):
            assert torch.allclose(tensor, states[1][name], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize(
    "method",
    [
        *({"name": name} for name in METHODS if name != "bwnh"),
        {"name": "bwnh", "sweeps": 2, "offset": True, "mirror_images": True, "bases": 1},
        {"name": "bwnh", "sweeps": 2, "bases": 2, "bases_above": 0.0, "bases_budget": 1.0},
    ],
    ids=lambda method: "-".join([method["name"], *(key for key in method if key != "name")]),
)
def test_what_is_packed_of_every_method_is_what_was_trained(
    settings: WorkerSettings, method: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    tuning = {"epochs": 2, "batch_size": 16, "latent": "magnitude"}
    job_id = f"every-{request.node.callspec.id.replace('_', '-')}"
    run = Run(context_of(settings, job_id, method=method, fine_tune=tuning))
    report = run.all()
    assert report["parity"]["top1_agreement"] == 1.0
    assert report["parity"]["largest_logit_difference"] <= 1e-3 * report["parity"]["largest_logit"]
    assert all(layer["binary"] for layer in report["layers"])
    plan = artifact.decode(run.read("artifact")).plan
    bases = [getattr(node, "bases", 1) for node in plan.nodes]
    assert (max(bases) > 1) == (method.get("bases", 1) > 1)


@pytest.mark.parametrize("fine_tune", [None, FINE_TUNE])
def test_activations_of_eight_bits_are_measured_as_they_are_served_and_without_rounding(
    settings: WorkerSettings, fine_tune: dict[str, Any] | None
) -> None:
    spec = {
        "activation_bits": 8,
        "fine_tune": fine_tune,
        "method": {"name": "bwnh", "sweeps": 3, "recalibrate_batch_norm": "end"},
    }
    name = "tuned" if fine_tune else "calibrated"
    smooth = Run(context_of(settings, f"eight-bits-{name}", **spec))
    report = smooth.all()
    trained = ["fine_tuned"] if fine_tune else []
    assert list(report["accuracy"]) == [
        *("full_precision", "calibrated", *trained, "packed", "packed_float_activations")
    ]
    # The trained form rounds as the packed one does.
    assert report["parity"]["top1_agreement"] == 1.0
    plan = artifact.decode(smooth.read("artifact")).plan
    assert "quantize" in {node.op for node in plan.nodes}
    broken = Run(context_of(settings, f"eight-bits-{name}-broken", **spec))
    broken.all(interrupted=True)
    assert smooth.read("artifact") == broken.read("artifact")


@pytest.mark.parametrize("bits", [32, 8])
def test_the_report_names_the_runtime_and_the_artifact_is_the_same_on_any(
    settings: WorkerSettings, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = runtime.load
    loaded: list[tuple[str, int]] = []

    def recorded(packed: artifact.Artifact, runtime: str, threads: int) -> Any:
        loaded.append((runtime, threads))
        return load(packed, runtime, threads)

    monkeypatch.setattr(runtime, "load", recorded)
    made = []
    for name in ("reference", runtime.AUTO):
        meant = runtime.choose(name)
        chosen = settings.model_copy(update={"runtime": name})
        run = Run(context_of(chosen, f"measured-by-{name}-{bits}", activation_bits=bits))
        report = run.all()
        assert (report["runtime"], report["kernels"]) == (meant, runtime.kernels_of(meant))
        made.append(run.read("artifact"))
        # With rounded activations also the network that does not round them, on the very same.
        asked = [name, meant] if bits == 8 else [name]
        assert loaded == [(each, settings.worker_threads) for each in asked]
        loaded.clear()
    assert len(set(made)) == 1


def test_layers_kept_in_float_stay_so(settings: WorkerSettings) -> None:
    kept = ["features.0", "classifier"]
    run = Run(context_of(settings, "kept", keep_float=kept, method={"name": "bwn"}))
    report = run.all()
    binary = {layer["name"]: layer["binary"] for layer in report["layers"]}
    assert binary == {name: name not in kept for name in LAYERS}
    assert set(artifact.binary_codes(artifact.decode(run.read("artifact")))) == {
        "features.3",
        "features.7",
    }


@pytest.mark.parametrize(
    ("changes", "error", "field", "words"),
    [
        ({"checkpoint": "ten classes"}, CheckpointMismatch, "checkpoint", "10 classes"),
        ({"architecture": "vgg9"}, CheckpointMismatch, "checkpoint", "digits_cnn"),
        ({"checkpoint": "sha256:" + "0" * 64}, NotFound, "spec.checkpoint", "Send"),
        ({"checkpoint": None}, InvalidSpec, "spec.checkpoint", "Send"),
        ({"dataset": "unheard-of"}, NotFound, "spec.dataset", "POST /datasets"),
        ({"architecture": "lenet"}, InvalidSpec, "spec.architecture", "digits_cnn"),
        ({"keep_float": ["conv9"]}, InvalidSpec, "spec.keep_float", "features.0"),
        ({"keep_float": LAYERS}, InvalidSpec, "spec.keep_float", "at least one"),
        ({"fine_tune": {"epochs": 1}}, InvalidSpec, "spec.fine_tune.batch_size", "at most 48"),
    ],
)
def test_what_cannot_be_compressed_is_refused_before_anything_is_done(
    settings: WorkerSettings,
    changes: dict[str, Any],
    error: type[BitpressError],
    field: str,
    words: str,
) -> None:
    if changes.get("checkpoint") == "ten classes":
        changes = {"checkpoint": upload(settings, classes=10)}
    if changes.get("architecture") == "vgg9":
        changes = {**changes, "input": {"channels": 1, "height": 32, "width": 32}}
    run = Run(context_of(settings, "refused", **changes))
    with pytest.raises(error) as caught:
        run.step(prepare(run.fresh())["prepare"])
    assert caught.value.field == field
    assert words in (caught.value.remedy or "")
    assert not run.context.files.folder.exists()


def test_a_runtime_that_is_missing_is_told_before_anything_is_done(
    settings: WorkerSettings,
) -> None:
    context = context_of(settings, "elsewhere")
    elsewhere = replace(context, settings=settings.model_copy(update={"runtime": "tpu"}))
    run = Run(elsewhere)
    with pytest.raises(Unavailable) as caught:
        run.step(prepare(run.fresh())["prepare"])
    assert "reference" in (caught.value.remedy or "")
    assert not run.context.files.folder.exists()


def test_a_dataset_that_is_not_kept_decoded_gives_the_same_artifact(
    settings: WorkerSettings,
) -> None:
    training = {"epochs": 1, "batch_size": 16}
    kept = Run(context_of(settings, "kept", fine_tune=training))
    kept.all()
    streaming = settings.model_copy(update={"max_cache_bytes": 0})
    streamed = Run(context_of(streaming, "streamed", fine_tune=training))
    streamed.all()
    assert streamed.read("artifact") == kept.read("artifact")


def test_training_on_random_crops_goes_on_where_it_was_interrupted(
    settings: WorkerSettings,
) -> None:
    streaming = settings.model_copy(update={"max_cache_bytes": 0})
    changes = {
        "fine_tune": {"epochs": 2, "batch_size": 16, "augmentation": "random_resized_crop"},
        "input": {
            **{"channels": 1, "height": 8, "width": 8, "resize": 10},
            **{"mean": [0.5], "std": [0.25]},
        },
    }
    whole = Run(context_of(streaming, "crops", **changes))
    report = whole.all()
    assert artifact.decode(whole.read("artifact")).input.resize == 10
    assert set(report["accuracy"]) == {"full_precision", "calibrated", "fine_tuned", "packed"}
    resumed = Run(context_of(streaming, "crops-interrupted", **changes))
    resumed.all(interrupted=True)
    assert resumed.read("artifact") == whole.read("artifact")

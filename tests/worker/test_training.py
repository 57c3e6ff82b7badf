"""Training as a whole: it learns, it can be broken off anywhere, and processes share it."""

import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.digits import load
from benchmarks.digits.training import INPUT
from models import registry
from models.layers import (
    BinaryConv2d,
    BinaryLinear,
    binarizable_layers,
    binarize_layer,
    replace_layer,
)
from models.preprocessing import normalise
from store.errors import InvalidDataset, InvalidSpec, JobCrashed
from worker.training.distributed import train_epoch
from worker.training.images import CachedImages
from worker.training.lifetime import parent_of
from worker.training.recipe import Recipe
from worker.training.rules import ScaledSignRule
from worker.training.trainer import Trainer

REPOSITORY = Path(__file__).parents[2]
IMAGES = 512


def silent(_fraction, _message, _details=None):
    """Report to nobody."""


def digits_network(seed=3):
    torch.manual_seed(seed)
    return registry.build("digits_cnn", channels=1, height=8, width=8, classes=10, parameters={})


def digit_images(count=IMAGES, augmentation="none"):
    digits = load()
    return CachedImages(
        digits.pixels[:count], digits.labels[:count], INPUT, seed=5, augmentation=augmentation
    )


def binarized(network):
    """A copy whose every layer is ``mean|w| sign(w)``."""
    binary = registry.build("digits_cnn", channels=1, height=8, width=8, classes=10, parameters={})
    binary.load_state_dict(network.state_dict())
    for name, layer in list(binarizable_layers(binary).items()):
        codes = torch.where(layer.weight >= 0, 1.0, -1.0)
        scale = layer.weight.detach().abs().flatten(1).mean(dim=1)
        replace_layer(binary, name, binarize_layer(layer, codes, scale))
    return binary.eval()


def trainer_of(full, recipe, *, teacher=True, images=None, rule=None, seed=11, device="cpu"):
    return Trainer(
        binarized(full),
        full if teacher else None,
        images or digit_images(),
        recipe,
        rule or ScaledSignRule(),
        seed=seed,
        float_weights={
            name: layer.weight.detach() for name, layer in binarizable_layers(full).items()
        },
        device=device,
    )


def untrained_trainer(images=IMAGES, device="cpu", **recipe):
    """What a process of its own makes of JSON arguments, the same in every process."""
    recipe = {key: tuple(one) if isinstance(one, list) else one for key, one in recipe.items()}
    full = digits_network().eval()
    return trainer_of(full, Recipe(**recipe), images=digit_images(images), device=device)


def accuracy(network):
    digits = load()
    with torch.inference_mode():
        answers = network(normalise(digits.pixels[IMAGES:], INPUT)).argmax(dim=1).numpy()
    return float((answers == digits.labels[IMAGES:]).mean())


@pytest.fixture(scope="module")
def full():
    """The network trained in float, by the same trainer."""
    recipe = Recipe(epochs=4, batch_size=32, learning_rate=3e-3, precision="float32")
    network = digits_network()
    trainer = Trainer(
        network, None, digit_images(), recipe, ScaledSignRule(), seed=1, float_weights={}
    )
    for epoch in range(4):
        trainer.epoch(epoch, silent)
    trained = trainer.finished()
    assert accuracy(trained) > 0.9
    return trained


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


RECIPES = {
    "adam": {},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.003},
    "averaged": {"average": 0.9, "settle_epochs": 1},
    "stochastic": {"binary_fractions": (0.5, 1.0), "batch_norm": "reestimate"},
    "progressive": {"estimator": "progressive", "feature_distillation": 1.0},
    "frozen": {"batch_norm": "frozen", "distillation": 0.3, "label_smoothing": 0.1},
    "bfloat16": {"precision": "bfloat16", "latent": "code", "estimator": "polynomial"},
}


def recipe_of(name, **changes):
    basic = {"epochs": 2, "batch_size": 64, "learning_rate": 2e-3, "precision": "float32"}
    return Recipe(**{**basic, **RECIPES[name], **changes})


@pytest.mark.parametrize("name", RECIPES)
def test_training_brings_back_what_the_signs_cost(full, name):
    trainer = trainer_of(full, recipe_of(name))
    before = accuracy(binarized(full))
    first = trainer.epoch(0, silent)
    last = trainer.epoch(1, silent)
    finished = trainer.finished()
    assert accuracy(finished) > max(before, 0.7)
    assert 0 < last.learning_rate < first.learning_rate
    assert last.loss < first.loss or name in ("stochastic", "averaged")
    for layer in finished.modules():
        if isinstance(layer, BinaryConv2d | BinaryLinear):
            assert set(layer.weight.unique().tolist()) <= {-1.0, 1.0}
            assert (layer.scale >= 0).all()


@pytest.mark.parametrize("name", RECIPES)
def test_training_goes_on_from_a_file_as_if_it_had_never_stopped(full, name, tmp_path):
    smooth = trainer_of(full, recipe_of(name))
    figures = [smooth.epoch(epoch, silent) for epoch in range(2)]
    broken = trainer_of(full, recipe_of(name))
    broken.epoch(0, silent)
    save_file(broken.state(), tmp_path / "state.safetensors")
    resumed = trainer_of(full, recipe_of(name))
    torch.rand(7)  # no epoch depends on what was drawn before it
    resumed.load_state(load_file(tmp_path / "state.safetensors"))
    assert resumed.epoch(1, silent).loss == figures[1].loss
    assert same(resumed.state(), smooth.state())
    assert same(resumed.finished().state_dict(), smooth.finished().state_dict())


def test_a_new_process_trains_the_next_epoch_bit_for_bit(tmp_path):
    recipe = dataclasses.asdict(recipe_of("averaged", epochs=3))
    smooth = untrained_trainer(**recipe)
    smooth.epoch(0, silent)
    save_file(smooth.state(), tmp_path / "0.safetensors")
    smooth.epoch(1, silent)
    program = (
        "import json, sys; from safetensors.torch import load_file, save_file\n"
        "import torch; torch.set_num_threads(int(sys.argv[4]))\n"
        "from tests.worker.test_training import silent, untrained_trainer\n"
        "trainer = untrained_trainer(**json.loads(sys.argv[1]))\n"
        "trainer.load_state(load_file(sys.argv[2])); trainer.epoch(1, silent)\n"
        "save_file(trainer.state(), sys.argv[3])"
    )
    files = [str(tmp_path / f"{number}.safetensors") for number in (0, 1)]
    threads = str(torch.get_num_threads())
    subprocess.run(
        [sys.executable, "-c", program, json.dumps(recipe), *files, threads],
        cwd=REPOSITORY,
        check=True,
        timeout=600,
    )
    assert same(load_file(files[1]), smooth.state())


def test_looking_at_the_result_changes_no_training(full):
    looked_at, left_alone = (trainer_of(full, recipe_of("averaged")) for _ in range(2))
    looked_at.finished()
    for epoch in range(2):
        looked_at.epoch(epoch, silent)
        looked_at.finished()
        left_alone.epoch(epoch, silent)
    assert same(looked_at.state(), left_alone.state())


def test_neither_student_nor_teacher_is_changed(full):
    before = {name: value.clone() for name, value in full.state_dict().items()}
    trainer_of(full, recipe_of("progressive")).epoch(0, silent)
    assert same(dict(full.state_dict()), before)
    assert full.training is False
    assert all(parameter.requires_grad for parameter in full.parameters())


def codes_of(trainer):
    return {
        name: value >= 0
        for name, value in trainer.state().items()
        if name.startswith("student/") and name.endswith(("features.3.weight", "classifier.weight"))
    }


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_settling_fixes_the_bits_and_trains_the_rest(full, average):
    recipe = recipe_of("adam", epochs=3, settle_epochs=2, average=average)
    trainer = trainer_of(full, recipe)
    trainer.epoch(0, silent)
    kept = trainer.finished()
    before = trainer.state()
    for epoch in (1, 2):
        trainer.epoch(epoch, silent)
    settled = trainer.finished()
    for name, layer in kept.named_modules():
        if isinstance(layer, BinaryConv2d | BinaryLinear):
            assert torch.equal(layer.codes, settled.get_submodule(name).codes)
            assert not torch.equal(layer.scale, settled.get_submodule(name).scale)
    assert (same(codes_of(trainer), {n: before[n] >= 0 for n in codes_of(trainer)})) or average


@pytest.mark.parametrize("settle_epochs", [1, 2])
def test_all_filters_are_binary_and_no_gradient_is_soft_while_bits_are_fixed(full, settle_epochs):
    recipe = recipe_of("stochastic", epochs=3, settle_epochs=settle_epochs, estimator="progressive")
    trainer = trainer_of(full, recipe)
    told, quantizers, steps = [], trainer._stochastic, IMAGES // 64
    prepare = trainer._prepare

    def spied(step):
        prepare(step)
        told.append((quantizers[0].fraction, trainer._estimator.progress))

    trainer._prepare = spied
    for epoch in range(3):
        trainer.epoch(epoch, silent)
    learning = (3 - settle_epochs) * steps
    fractions, progress = zip(*told, strict=True)
    # Both parts are equally long, and together last for as long as bits may change.
    assert fractions == (0.5,) * (learning // 2) + (1.0,) * (3 * steps - learning // 2)
    assert progress[:learning] == tuple(step / learning for step in range(learning))
    assert set(progress[learning:]) == {1.0}


def test_frozen_batch_norm_keeps_its_statistics(full):
    trainer = trainer_of(full, recipe_of("frozen"))
    trainer.epoch(0, silent)
    finished = trainer.finished()
    for name, value in full.state_dict().items():
        if "running" in name:
            assert torch.equal(finished.state_dict()[name], value)
        elif name == "features.1.weight":
            assert not torch.equal(finished.state_dict()[name], value)


def test_without_a_teacher_the_labels_are_the_whole_loss(full):
    unasked = recipe_of("adam", distillation=0.0, feature_distillation=0.0)
    asked = trainer_of(full, unasked).epoch(0, silent)
    alone = trainer_of(full, recipe_of("adam"), teacher=False).epoch(0, silent)
    assert alone.loss == asked.loss


def test_dropout_is_repeatable(full):
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))

        def forward(self, x):
            return self.layers(x)

    def run():
        torch.manual_seed(0)
        network = Dropping()
        trainer = Trainer(
            network,
            None,
            digit_images(),
            recipe_of("adam"),
            ScaledSignRule(),
            seed=1,
            float_weights={},
        )
        torch.rand(int(torch.randint(9, ())))
        return trainer.epoch(0, silent).loss

    state = torch.random.get_rng_state()
    assert run() == run()
    torch.random.set_rng_state(state)


class Elsewhere(Tensor):
    """A tensor that can be brought to a device, and used for nothing before it is there."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        assert function is Tensor.to, f"{function} met a tensor of another device"
        with torch._C.DisableTorchFunctionSubclass():
            return arguments[0].as_subclass(Tensor).to(*arguments[1:], **(keywords or {}))


def test_whole_batches_are_brought_to_the_device_that_trains(full):
    class ImagesElsewhere:
        def __len__(self):
            return IMAGES

        def epoch(self, *arguments, **keywords):
            for batch in digit_images().epoch(*arguments, **keywords):
                yield tuple(one.as_subclass(Elsewhere) for one in batch)

    recipe = recipe_of("adam", batch_norm="reestimate")
    there, here = (trainer_of(full, recipe, images=of) for of in (ImagesElsewhere(), None))
    found, wanted = there.epoch(0, silent), here.epoch(0, silent)
    assert (found.loss, found.train_accuracy) == (wanted.loss, wanted.train_accuracy)
    assert same(there.finished().state_dict(), here.finished().state_dict())


# Products in bfloat16 are of a GPU's own kind.
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "bfloat16"])
def test_training_stays_on_its_device_and_waits_for_it_at_the_end(
    full, name, simulated_gpu, monkeypatch
):
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.random, "fork_rng", lambda _devices: contextlib.nullcontext())
    # A report in between, which waits too, comes by the clock.
    monkeypatch.setattr("worker.training.figures.REPORT_S", math.inf)
    recipe, images = recipe_of(name, batch_size=32), digit_images(64)
    here, there = (trainer_of(full, recipe, images=images, device=of) for of in ("cpu", "cuda:0"))
    expected = here.epoch(0, silent)
    simulated_gpu.waits.clear()
    figures = there.epoch(0, silent)
    # Once for the figures; stochastic quantisation draws filters by their errors, in every step.
    assert len(simulated_gpu.waits) == 1 or name == "stochastic"
    assert figures.loss == pytest.approx(expected.loss, rel=1e-6)
    assert figures.train_accuracy == expected.train_accuracy
    found, wanted = there.finished().state_dict(), here.finished().state_dict()
    assert {type(tensor) for tensor in (*found.values(), *there.state().values())} == {Tensor}
    assert found.keys() == wanted.keys()
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[key], rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")
@pytest.mark.parametrize("name", RECIPES)
def test_a_gpu_trains_what_a_cpu_trains(full, name, tmp_path):
    recipe = recipe_of(name)
    on_cpu, on_gpu = (trainer_of(full, recipe, device=device) for device in ("cpu", "cuda"))
    wanted, found = on_cpu.epoch(0, silent), on_gpu.epoch(0, silent)
    # Its products are rounded otherwise, and a weight next to zero may get another sign.
    assert found.loss == pytest.approx(wanted.loss, rel=0.1)
    assert found.train_accuracy == pytest.approx(wanted.train_accuracy, abs=0.05)
    save_file(on_gpu.state(), tmp_path / "state.safetensors")
    resumed = trainer_of(full, recipe, device="cuda")
    resumed.load_state(load_file(tmp_path / "state.safetensors"))
    assert same(resumed.state(), on_gpu.state())
    resumed.epoch(1, silent)
    finished = resumed.finished()
    assert {tensor.device.type for tensor in finished.state_dict().values()} == {"cpu"}
    assert accuracy(finished) > max(accuracy(binarized(full)), 0.7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")
def test_a_process_of_torchrun_trains_on_its_gpu_as_this_one_does(tmp_path):
    recipe = dataclasses.asdict(recipe_of("sgd", average=0.5))
    alone = untrained_trainer(images=64, device="cuda", **recipe)
    expected = alone.epoch(0, silent)
    figures = train_epoch(
        "tests.worker.test_training:untrained_trainer",
        {"images": 64, "device": "cuda", **recipe},
        0,
        state=None,
        result=tmp_path / "state.safetensors",
        processes=1,
        threads=1,
        progress=silent,
        device="cuda",
    )
    assert figures.loss == pytest.approx(expected.loss, rel=1e-4)
    found, wanted = load_file(tmp_path / "state.safetensors"), alone.state()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-4)


def test_seeds_give_different_results(full):
    one, other = (
        trainer_of(full, recipe_of("stochastic"), seed=seed).epoch(0, silent) for seed in (1, 2)
    )
    assert one.loss != other.loss


def test_progress_tells_loss_and_speed(full, monkeypatch):
    monkeypatch.setattr("worker.training.figures.REPORT_S", 0.0)
    told = []
    figures = trainer_of(full, recipe_of("adam")).epoch(0, lambda *one: told.append(one))
    assert [fraction for fraction, _, _ in told] == [step / 8 for step in range(1, 9)]
    assert "loss" in told[0][1] and "images/s" in told[0][1]
    details = [details for _, _, details in told]
    assert [(one["batch"], one["batches"]) for one in details] == [(n, 8) for n in range(1, 9)]
    assert all(one["images_per_second"] > 0 for one in details)
    assert details[-1]["loss"] == pytest.approx(figures.loss)
    assert figures.images_per_second > 0 and figures.seconds > 0
    assert 0 <= figures.train_accuracy <= 1


def test_a_loss_that_is_no_number_ends_the_training(full):
    trainer = trainer_of(full, recipe_of("sgd", learning_rate=1e30))
    with pytest.raises(InvalidSpec, match="finite") as raised:
        trainer.epoch(0, silent)
    assert raised.value.field == "spec.fine_tune.learning_rate"
    assert raised.value.remedy


def test_a_batch_larger_than_the_data_is_refused(full):
    with pytest.raises(InvalidSpec, match="512") as raised:
        trainer_of(full, recipe_of("adam", batch_size=1024))
    assert raised.value.field == "spec.fine_tune.batch_size"


# --- several processes


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    # An epoch of one step: after it, a weight next to zero may have another sign, and all that
    # follows differs. So the second one begins with the same state again.
    recipe = dataclasses.asdict(recipe_of("sgd", average=0.5, learning_rate=0.01))
    alone = untrained_trainer(images=64, **recipe)
    before, state = alone.state(), None
    for epoch in range(2):
        if state is not None:
            alone.load_state(load_file(state))
        expected = alone.epoch(epoch, silent)
        result = tmp_path / f"{epoch}.safetensors"
        figures = train_epoch(
            "tests.worker.test_training:untrained_trainer",
            {"images": 64, **recipe},
            epoch,
            state=state,
            result=result,
            processes=2,
            threads=1,
            progress=silent,
            device="cpu",
        )
        assert figures.loss == pytest.approx(expected.loss, rel=1e-4)
        assert figures.train_accuracy == expected.train_accuracy
        state = result
        found, wanted = load_file(result), alone.state()
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            # Only the order of sums differs, and there is no more to the gradients of scales before
            # a batch norm; batch norm of half a batch would be far outside.
            assert torch.allclose(found[name], value, rtol=1e-3, atol=2e-4), name
    assert not same(before, wanted)


@pytest.mark.slow
def test_what_a_process_raises_reaches_the_caller(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    recipe = dataclasses.asdict(recipe_of("adam", batch_size=63))
    with pytest.raises(InvalidSpec, match="divided") as raised:
        train_epoch(
            "tests.worker.test_training:untrained_trainer",
            recipe,
            0,
            state=None,
            result=tmp_path / "never.safetensors",
            processes=2,
            threads=1,
            progress=silent,
            device="cpu",
        )
    assert raised.value.field == "spec.fine_tune.batch_size"
    # Neither a state nor torchrun's own files.
    assert [*tmp_path.rglob("*")] == [temporary]


def partly_broken_trainer(**recipe):
    """Fail as expected, but on the second process only."""
    if os.environ["RANK"] == "1":
        raise InvalidDataset("The image cat/3.png is damaged.", remedy="Replace it.")
    return untrained_trainer(**recipe)


@pytest.mark.slow
def test_what_any_process_raises_reaches_the_caller(tmp_path):
    with pytest.raises(InvalidDataset, match=r"cat/3\.png") as raised:
        train_epoch(
            "tests.worker.test_training:partly_broken_trainer",
            dataclasses.asdict(recipe_of("adam")),
            0,
            state=None,
            result=tmp_path / "never.safetensors",
            processes=2,
            threads=1,
            progress=silent,
            device="cpu",
        )
    assert raised.value.remedy == "Replace it."


def broken_trainer():
    """Fail as nobody expected."""
    raise RuntimeError("a bug in the trainer")


@pytest.mark.slow
def test_a_process_that_breaks_is_told_and_logged(tmp_path, caplog):
    with pytest.raises(JobCrashed, match="stopped unexpectedly") as raised:
        train_epoch(
            "tests.worker.test_training:broken_trainer",
            {},
            0,
            state=None,
            result=tmp_path / "never.safetensors",
            processes=1,
            threads=1,
            progress=silent,
            device="cpu",
        )
    (record,) = caplog.records
    assert "a bug in the trainer" in record.output
    (note,) = raised.value.__notes__
    assert "a bug in the trainer" in note
    assert "a bug in the trainer" not in json.dumps(raised.value.problem())


def sleeping_trainer(folder):
    """Leave this process's id in ``folder``, and never come to an end."""
    pid = os.getpid()
    (Path(folder) / f".{pid}").touch()
    (Path(folder) / f".{pid}").rename(Path(folder) / str(pid))
    time.sleep(300)


@pytest.mark.slow
def test_all_processes_die_with_the_one_that_trains(tmp_path, is_running, wait_until):
    program = (
        "import sys; from pathlib import Path\n"
        "from worker.training.distributed import train_epoch\n"
        "train_epoch('tests.worker.test_training:sleeping_trainer', {'folder': sys.argv[1]}, 0,"
        " state=None, result=Path(sys.argv[1]) / 'never', processes=2, threads=1, progress=print)"
    )
    pids = tmp_path / "pids"
    pids.mkdir()
    started = subprocess.Popen([sys.executable, "-c", program, str(pids)], cwd=REPOSITORY)
    try:
        wait_until(lambda: len(list(pids.glob("[0-9]*"))) == 2, "both processes", 60)
    finally:
        started.kill()
        started.wait()
    for path in pids.glob("[0-9]*"):
        wait_until(lambda pid=int(path.name): not is_running(pid), "a process's end", 30)


def test_a_process_whose_torchrun_is_gone_ends_before_it_looks_for_the_others(tmp_path):
    # Started by this process, which is not a child of itself: as if another had taken over.
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "worker.training.distributed", "--trainer", "no:such"),
            *("--epoch", "0", "--result", str(tmp_path / "never"), "--caller", str(os.getpid())),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "")


def test_the_parent_of_a_process_is_found():
    assert parent_of(os.getpid()) == os.getppid()
    assert parent_of(2**31 - 1) is None

"""What a job costs in seconds and bytes of memory, reckoned from what its network computes.

Every product is counted in multiply-accumulates and divided by the rate at which a machine does
them, given as that of a plain product of matrices; every value that is only passed over is counted
too. The constants below were fitted to jobs on two cores of an AMD EPYC (Zen 4);
``python -m benchmarks.forecast --jobs vgg9,digits,digits-tuned`` runs such jobs and prints what was
foreseen beside what was measured. On 2026-11-21, on a machine that did other work as well, 0.71,
0.99 and 0.81 of the whole jobs' seconds were foreseen, single stages were off by up to a factor of
two, and memory was foreseen at 1.15 to 1.33 times what was taken.

The shapes of a network are those of `models.workload`, which this room does not know.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final, Protocol

from store.fine_tuning import FineTuning
from store.settings import DEFAULT_CACHE_BYTES
from store.specs import BwnhParameters, CompressSpec

# Starting the process of a stage: Python, torch and what else it imports.
START_S: Final = 1.6
# Reading the checkpoint and finding the layers' order.
PREPARE_S: Final = 1.1
# Shares of the rate of a plain product of matrices.
FLOAT_SHARE: Final = 1.0
PACKED_SHARE: Final[Mapping[int, float]] = {32: 1.7, 8: 5.0}
REFERENCE_SHARE: Final = 0.8
TRAINING_SHARE: Final = 1.0
GRAM_SHARE: Final = 0.8
# A value that a layer without weights reads and writes, on one thread.
VALUE_S: Final = 0.5e-9
# Decoding, on one thread: an image, and a byte of its file.
IMAGE_S: Final = 1.2e-4
FILE_BYTE_S: Final = 4e-8
# Calibration: copying a patch's input; a row of bits in a sweep, and a bit in it.
PATCH_S: Final = 2e-9
ROW_S: Final = 5e-5
BIT_S: Final = 1.2e-8
# Of the most sweeps that a method may take, with filters that are done left out.
SWEEPS_SHARE: Final = 0.6
BASIS_SWEEPS: Final = 8
DATA_FREE_LAYER_S: Final = 0.02
# Exporting the network, by layer; writing and publishing the model.
EXPORT_S: Final = 1.1
EXPORT_LAYER_S: Final = 0.06
PUBLISH_S: Final = 0.1
# Measuring the latency (`worker.latency`): pauses, and turns of at most so many runs or seconds.
LATENCY_TURNS: Final = 5
LATENCY_PAUSE_S: Final = 0.05
LATENCY_TURN_S: Final = 0.15
LATENCY_RUNS: Final = 50
LATENCY_LEAST_RUNS: Final = 3
LATENCY_SLOW_TURN_S: Final = 0.4
# A step of training costs so much beside its products, by layer: the optimizer, mostly.
STEP_LAYER_S: Final = 6e-4

# Memory.
PROCESS_BYTES: Final = 400_000_000
FRONTIER_BYTES: Final = 384 * 2**20
SAMPLES_PER_PRODUCT: Final = 2 * 8192
# Networks that an evaluation has at once, each with its weights as they compute; of training, the
# student, its gradients, the optimizer's two moments, the latent weights and the teacher.
EVALUATION_COPIES: Final = 5
TRAINING_COPIES: Final = 8
# Batches: what `worker.forms` and `worker.calibration_images` take at a time.
BATCH_IMAGES: Final = 100
BATCH_PIXELS: Final = 1_000_000


class LayerShape(Protocol):
    """A convolution or linear layer: `models.workload.LayerWork`."""

    @property
    def name(self) -> str:
        """Its name in the network."""

    @property
    def shape(self) -> Sequence[int]:
        """Its weight's, filters first."""

    @property
    def positions(self) -> int:
        """Output positions of an image."""

    @property
    def weights(self) -> int:
        """How many weights it has."""

    @property
    def inputs(self) -> int:
        """How many weights one filter has."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""


class NetworkShape(Protocol):
    """A network: `models.workload.Workload`."""

    @property
    def layers(self) -> Sequence[LayerShape]:
        """In the order of execution."""

    @property
    def elements(self) -> int:
        """Numbers that all values of one image have."""

    @property
    def peak_elements(self) -> int:
        """Numbers of the largest of these values."""

    @property
    def weights(self) -> int:
        """Weights of all layers."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers for one image."""

    @property
    def float_bytes(self) -> int:
        """Bytes of all parameters and buffers in float32."""


@dataclass(frozen=True)
class Machine:
    """What computes: its threads, and the multiply-accumulates a second of all of them together."""

    threads: int
    macs_per_second: float


@dataclass(frozen=True)
class JobImages:
    """How many images the parts of a job have; ``bytes`` are those of all encoded images."""

    train: int
    val: int
    test: int
    calibration: int
    bytes: int

    @property
    def total(self) -> int:
        """How many are decoded."""
        return self.train + self.val + self.test

    def trained(self, tuning: FineTuning) -> int:
        """Return how many an epoch has."""
        return self.train + (self.val if tuning.train_on == "train_and_val" else 0)


@dataclass(frozen=True)
class ForeseenJob:
    """A job whose cost is foreseen; ``bases`` has those of each binary layer.

    A dataset of more than ``max_cache_bytes`` decoded bytes is decoded whenever images are read.
    """

    spec: CompressSpec
    work: NetworkShape
    bases: Mapping[str, int]
    images: JobImages
    runtime: str
    max_cache_bytes: int = DEFAULT_CACHE_BYTES

    @property
    def binary(self) -> list[LayerShape]:
        """The layers whose weights become bits."""
        return [layer for layer in self.work.layers if layer.name in self.bases]


def stage_seconds(job: ForeseenJob, machine: Machine) -> dict[str, float]:
    """Return the seconds of each stage that the job has, in their order."""
    streams = _is_streamed(job)
    decoded_at_once = 0 if streams else job.images.total
    prepare = START_S + PREPARE_S + _decoding(job, machine, decoded_at_once)
    seconds = {"prepare": prepare}
    seconds["calibrate"] = START_S + _calibration(job, machine)
    if (tuning := job.spec.fine_tune) is not None:
        read = tuning.epochs * job.images.trained(tuning) if streams else 0
        # Images are decoded ahead, beside the products, by the same cores.
        seconds["fine_tune"] = START_S + _training(job, machine) + _decoding(job, machine, read)
    seconds["pack"] = START_S + _export(job)
    read = _answered(job) if streams else 0
    answers = _evaluation(job, machine) + _latency(job, machine)
    # Without its rounding the network is exported once more.
    export = _export(job) if job.spec.activation_bits < 32 else 0
    seconds["evaluate"] = START_S + export + answers + _decoding(job, machine, read)
    return {**seconds, "publish": PUBLISH_S}


def stage_memory(job: ForeseenJob) -> dict[str, int]:
    """Return the bytes of memory that the process of each stage takes at most."""
    weights, values = job.work.float_bytes, 4 * job.work.elements
    memory = {
        "prepare": PROCESS_BYTES + 2 * weights,
        "calibrate": PROCESS_BYTES + 2 * weights + _calibration_bytes(job),
        "pack": PROCESS_BYTES + 3 * weights,
        "evaluate": PROCESS_BYTES
        + EVALUATION_COPIES * weights
        + 3 * _batch(job.spec) * 4 * job.work.peak_elements,
    }
    if (tuning := job.spec.fine_tune) is not None:
        kept = TRAINING_COPIES * weights + ceil(1.5 * tuning.batch_size * values)
        memory["fine_tune"] = PROCESS_BYTES + kept
    return memory


def _forward(job: ForeseenJob, machine: Machine, share: float = FLOAT_SHARE) -> float:
    """Return the seconds of one image through the network."""
    products = job.work.macs / (share * machine.macs_per_second)
    return products + job.work.elements * VALUE_S / machine.threads


def _export(job: ForeseenJob) -> float:
    return EXPORT_S + EXPORT_LAYER_S * len(job.work.layers)


def _is_streamed(job: ForeseenJob) -> bool:
    fed = job.spec.input
    return job.images.total * fed.channels * fed.height * fed.width > job.max_cache_bytes


def _answered(job: ForeseenJob) -> int:
    """Return how many images an evaluation reads."""
    return job.images.test + (0 if job.spec.max_accuracy_drop is None else job.images.val)


def _decoding(job: ForeseenJob, machine: Machine, images: int) -> float:
    one = IMAGE_S + FILE_BYTE_S * job.images.bytes / max(job.images.total, 1)
    return images * one / machine.threads


def _calibration(job: ForeseenJob, machine: Machine) -> float:
    method, images = job.spec.method, job.images.calibration
    if not isinstance(method, BwnhParameters):
        return DATA_FREE_LAYER_S * len(job.work.layers)
    seen = images * (2 if method.mirror_images else 1)
    forward = seen * _forward(job, machine)
    # Two networks, and what each layer is to answer; anew for every layer where the values of all
    # images are not kept, half of the network on average.
    kept = seen * 4 * job.work.peak_elements <= FRONTIER_BYTES
    passes = 3.0 if kept else 1.0 + len(job.binary)
    passes += {"never": 0, "end": 1, "each_layer": 2}[method.recalibrate_batch_norm]
    passes += 2 if job.spec.activation_bits < 32 else 0
    layers = sum(_layer(machine, job.bases[one.name], one, method, seen) for one in job.binary)
    return passes * forward + layers


def layer_seconds(job: ForeseenJob, machine: Machine) -> dict[str, float]:
    """Return the seconds that calibration takes for each binary layer, in their order.

    Their sum is that of the stage, without the start of its process.
    """
    method = job.spec.method
    if not isinstance(method, BwnhParameters):
        own = {layer.name: DATA_FREE_LAYER_S for layer in job.binary}
    else:
        seen = job.images.calibration * (2 if method.mirror_images else 1)
        own = {
            one.name: _layer(machine, job.bases[one.name], one, method, seen) for one in job.binary
        }
    # Passes through the network are divided among the layers by what these compute.
    passes = _calibration(job, machine) - sum(own.values())
    macs = sum(layer.macs for layer in job.binary)
    return {layer.name: own[layer.name] + passes * layer.macs / macs for layer in job.binary}


def _layer(
    machine: Machine, bases: int, layer: LayerShape, method: BwnhParameters, images: int
) -> float:
    """Return the seconds of one layer's statistics and of the search for its bits."""
    inputs, filters = layer.inputs, layer.shape[0]
    samples = min(method.positions, images * layer.positions)
    rate = GRAM_SHARE * machine.macs_per_second
    # G is symmetric; of fewer samples than inputs they are kept instead.
    gram = inputs * samples * (0.56 * inputs if samples >= inputs else 0) / rate
    collected = gram + inputs * samples * (filters / rate + PATCH_S)
    product = inputs * filters * min(inputs, 2 * samples) / rate
    sweep = product + inputs * (ROW_S + filters * BIT_S)
    sweeps = SWEEPS_SHARE * method.sweeps * len(method.starts)
    # A further basis has every basis solved once more, and itself first.
    for count in range(2, bases + 1):
        sweeps += (count + 1) * SWEEPS_SHARE * BASIS_SWEEPS
    return collected + sweep * sweeps


def _training(job: ForeseenJob, machine: Machine) -> float:
    tuning = job.spec.fine_tune
    assert tuning is not None
    # Forward, and two products as large backward; the teacher forward.
    passes = 3 + (1 if tuning.distillation or tuning.feature_distillation else 0)
    image = passes * _forward(job, machine, TRAINING_SHARE)
    images = job.images.trained(tuning)
    steps = images / tuning.batch_size
    step = STEP_LAYER_S * len(job.work.layers) + 8 * job.work.weights * VALUE_S / machine.threads
    return tuning.epochs * (images * image + steps * step)


def _evaluation(job: ForeseenJob, machine: Machine) -> float:
    spec = job.spec
    share = PACKED_SHARE[spec.activation_bits] if job.runtime == "cpu" else REFERENCE_SHARE
    original = _forward(job, machine)
    packed = _forward(job, machine, share)
    forms = (2 if spec.fine_tune is None else 3) * original + packed
    if spec.activation_bits < 32:
        forms += _forward(job, machine, PACKED_SHARE[32] if job.runtime == "cpu" else share)
    gate = 0.0 if spec.max_accuracy_drop is None else job.images.val * (original + packed)
    return job.images.test * forms + gate


def _latency(job: ForeseenJob, machine: Machine) -> float:
    run = 3 * _forward(job, machine)  # a single image keeps not all of the machine busy
    fast = min(LATENCY_TURN_S, LATENCY_RUNS * run)
    slow = min(max(LATENCY_SLOW_TURN_S, run), (1 + LATENCY_LEAST_RUNS) * run)
    return 2 * LATENCY_TURNS * (LATENCY_PAUSE_S + max(fast, slow))


def _calibration_bytes(job: ForeseenJob) -> int:
    method = job.spec.method
    if not isinstance(method, BwnhParameters):
        return 0
    seen = job.images.calibration * (2 if method.mirror_images else 1)
    kept = 2 * min(seen * 4 * job.work.peak_elements, FRONTIER_BYTES)
    running = 2 * _batch(job.spec) * 4 * job.work.peak_elements
    return kept + running + max(_layer_bytes(layer, method, seen) for layer in job.binary)


def _layer_bytes(layer: LayerShape, method: BwnhParameters, images: int) -> int:
    inputs, filters = layer.inputs, layer.shape[0]
    samples = min(method.positions, images * layer.positions)
    patches = 2 * 4 * inputs * min(samples, SAMPLES_PER_PRODUCT)
    gram = 16 * inputs * inputs if samples >= inputs else 0
    return patches + gram + 10 * 4 * inputs * filters


def _batch(spec: CompressSpec) -> int:
    return max(min(BATCH_PIXELS // (spec.input.height * spec.input.width), BATCH_IMAGES), 1)


def usual_bases(spec: CompressSpec, layers: Sequence[LayerShape]) -> dict[str, int]:
    """Return how many bases each of ``layers``, in order, will have; those kept in float none.

    A layer gets further ones while its loss is above a limit and the network's budget lasts, which
    only calibration can tell. These are the losses that are usual.
    """
    binary = [layer for layer in layers if layer.name not in spec.keep_float]
    method = spec.method
    if not isinstance(method, BwnhParameters) or not method.scale:
        return {layer.name: 1 for layer in binary}
    spare = method.bases_budget * sum(layer.weights for layer in layers)
    bases: dict[str, int] = {}
    for position, layer in enumerate(binary):
        # The first layer loses most, since it has the fewest inputs.
        loss, left = (0.1, 0.25) if position == 0 else (0.035, 0.4)
        count = 1
        used = 0
        while count < method.bases and loss > method.bases_above and count * layer.weights <= spare:
            used = count * layer.weights
            count, loss = count + 1, left * loss
        spare -= used
        bases[layer.name] = count
    return bases

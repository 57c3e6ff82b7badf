"""The whole way on real digits: train, compress through the service, predict through the service.

``python -m benchmarks.demo`` trains ``digits_cnn`` on three quarters of the bundled digits, starts
the service on a free port with a database and data of its own in a temporary folder, has the
network compressed by ``POST /compress`` and the held-out digits predicted by ``POST /predict``, and
stops everything. Its last line is ``demo: ok full_precision=... served=... ratio=...``; where a
figure is worse than promised, or anything fails, it says so and exits with 1.
"""

import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks import digits
from benchmarks.digits import Digits
from benchmarks.digits.training import ARCHITECTURE, INPUT, predict, train
from benchmarks.service import Service, ServiceFailed
from client.client import Client
from client.errors import ClientError
from client.types import CompressSpec, InputShape, Job
from models.layers import float32_bytes

LEAST_ACCURACY = 0.95
MOST_LOSS = 0.02
LEAST_RATIO = 15.0

_NAME = "digits"
_SEED = 0
_IMAGES_PER_REQUEST = 50
_JOB_PATIENCE_S = 120.0


class DemoFailed(Exception):
    """The demonstration did not show what it is meant to show; the message says why."""


@dataclass(frozen=True)
class Figures:
    """What the demonstration measured: accuracies in 0..1, sizes in bytes, times in ms."""

    images: int
    full_precision: float
    served: float
    float_bytes: int
    artifact_bytes: int
    float_ms: float
    served_ms: float

    @property
    def ratio(self) -> float:
        """How many times smaller the artifact is than the float32 network."""
        return self.float_bytes / self.artifact_bytes

    def table(self) -> str:
        """Return the figures before and after as a table."""
        return "\n".join(
            f"{title:<34}{before:>16}{after:>16}"
            for title, before, after in (
                ("", "full precision", "1 bit, served"),
                (
                    f"accuracy on {self.images} held-out digits",
                    f"{self.full_precision:.3f}",
                    f"{self.served:.3f}",
                ),
                ("bytes", f"{self.float_bytes:,}", f"{self.artifact_bytes:,}"),
                ("times smaller", "1.0", f"{self.ratio:.1f}"),
                (
                    "ms per image: in torch, over HTTP",
                    f"{self.float_ms:.2f}",
                    f"{self.served_ms:.2f}",
                ),
            )
        )

    def verdict(self) -> str:
        """Return the line that ends a demonstration that went well.

        Raises:
            DemoFailed: a figure is worse than promised.
        """
        if not self.full_precision > LEAST_ACCURACY:
            raise DemoFailed(
                f"the trained network reaches {self.full_precision:.3f}, not {LEAST_ACCURACY}"
            )
        # Counted in images: differences of rounded shares could fall on the wrong side.
        lost = round((self.full_precision - self.served) * self.images)
        if lost > MOST_LOSS * self.images:
            raise DemoFailed(
                f"the served network reaches {self.served:.3f}, more than {MOST_LOSS} below "
                f"{self.full_precision:.3f}"
            )
        if self.ratio < LEAST_RATIO:
            raise DemoFailed(
                f"the artifact is {self.ratio:.1f} times smaller, not {LEAST_RATIO:g} times"
            )
        return (
            f"demo: ok full_precision={self.full_precision:.3f} "
            f"served={self.served:.3f} ratio={self.ratio:.1f}"
        )


def run(folder: Path, say: Callable[[str], None]) -> Figures:
    """Carry out the demonstration with its files in ``folder``.

    Raises:
        DemoFailed: the job failed, or an image was refused.
        ServiceFailed: the service did not start or ended by itself.
        ClientError: the service refused a request or did not answer.
    """
    training, test = digits.split(digits.load(), seed=_SEED)
    say(f"Training {ARCHITECTURE} on {len(training)} of the bundled digits ...")
    started = time.perf_counter()
    network = train(training, seed=_SEED)
    say(f"  {time.perf_counter() - started:.1f} s")
    checkpoint = folder / "digits_cnn.safetensors"
    save_file(network.state_dict(), checkpoint)
    float_answers, float_ms = _timed(test, lambda part, _: predict(network, part).tolist())

    digits.write_images(training, folder / "images" / "train")
    paths = digits.write_images(test, folder / "images" / "test")
    say("Starting the service ...")
    with Service(folder / "service") as service, Client(service.wait_until_ready()) as client:
        say(f"  it listens at {client.url}")
        client.upload_dataset(folder / "images", _NAME)
        say("Compressing: POST /compress ...")
        job = _compress(client, checkpoint, say)
        artifact = client.download_artifact(_NAME, 1, folder / "artifact.safetensors")
        say(f"  {sum(job.stage_seconds.values()):.1f} s in {len(job.stage_seconds)} stages")
        say("Predicting the held-out digits: POST /predict ...")
        client.predict(_NAME, _read(paths[:1]))  # loads the model
        served_answers, served_ms = _timed(
            test, lambda part, chosen: _served(client, paths[chosen])
        )
    return Figures(
        images=len(test),
        full_precision=_accuracy(float_answers, test),
        served=_accuracy(served_answers, test),
        float_bytes=float32_bytes(network),
        artifact_bytes=artifact.stat().st_size,
        float_ms=float_ms,
        served_ms=served_ms,
    )


def _compress(client: Client, checkpoint: Path, say: Callable[[str], None]) -> Job:
    spec = CompressSpec(
        name=_NAME,
        architecture=ARCHITECTURE,
        dataset=_NAME,
        input=InputShape(
            channels=INPUT.channels,
            height=INPUT.height,
            width=INPUT.width,
            mean=INPUT.mean,
            std=INPUT.std,
        ),
        seed=_SEED,
    )
    deadline = time.monotonic() + _JOB_PATIENCE_S
    seen = ""

    def on_update(job: Job) -> None:
        nonlocal seen
        if job.stage and job.stage != seen:
            seen = job.stage
            say(f"  {seen}")
        if not job.finished and time.monotonic() > deadline:
            raise DemoFailed(f"the job did not end within {_JOB_PATIENCE_S:g} s")

    job = client.wait(client.compress(spec, checkpoint).id, on_update, interval_s=0.2)
    if job.state != "succeeded":
        reason = f": {job.problem.detail}" if job.problem else ""
        raise DemoFailed(f"the job ended as {job.state}{reason}")
    return job


def _timed(
    test: Digits, answer: Callable[[Digits, slice], Sequence[int]]
) -> tuple[list[int], float]:
    """Return the classes that ``answer`` gives, request by request, and milliseconds per image."""
    answers: list[int] = []
    started = time.perf_counter()
    for begin in range(0, len(test), _IMAGES_PER_REQUEST):
        chosen = slice(begin, begin + _IMAGES_PER_REQUEST)
        answers.extend(answer(Digits(test.pixels[chosen], test.labels[chosen]), chosen))
    return answers, 1000 * (time.perf_counter() - started) / len(test)


def _served(client: Client, paths: Sequence[Path]) -> list[int]:
    found = client.predict(_NAME, _read(paths), top_k=1).predictions
    refused = [prediction.error for prediction in found if prediction.error is not None]
    if refused:
        raise DemoFailed(f"{len(refused)} images were refused: {refused[0].detail}")
    return [digits.CLASSES.index(prediction.top[0].label) for prediction in found]


def _read(paths: Sequence[Path]) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in paths]


def _accuracy(answers: Sequence[int], test: Digits) -> float:
    return sum(int(a == b) for a, b in zip(answers, test.labels, strict=True)) / len(test)


def _say(line: str) -> None:
    print(line, flush=True)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run the demonstration; return the exit code."""
    # So that whatever ends this process, short of SIGKILL, stops the service and removes its files.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    # On maps of 8 x 8 a second thread gains little, and on a busy machine it costs a great deal.
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="bitpress-demo-") as folder:
            figures = run(Path(folder), _say)
        _say("\n" + figures.table() + "\n")
        _say(figures.verdict())
    except (DemoFailed, ServiceFailed, ClientError) as error:
        print(f"demo: failed: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("demo: stopped", file=sys.stderr, flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The real app behind a real socket, with small limits, and what tests put into it."""

import io
import json
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from numpy.typing import NDArray
from PIL import Image

from app.main import create_app
from app.protocol import ProblemProtocol
from app.settings import AppSettings
from models import artifact as artifacts
from models.artifact import Artifact
from models.attributes import Activation
from models.operators import Conv2d, Flatten, Linear
from models.plan import INPUT, Plan
from models.preprocessing import InputSpec
from store.artifacts import ModelStore, ModelVersion
from store.specs import CompressSpec

LABELS = ("cat", "dog", "owl")
INPUT_SPEC = InputSpec(3, 8, 8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@dataclass(frozen=True)
class Service:
    """A running app: ``http`` talks to it, ``settings.data_dir`` is where it keeps things."""

    app: FastAPI
    settings: AppSettings
    http: httpx.Client

    @property
    def address(self) -> tuple[str, int]:
        url = self.http.base_url
        assert url.port is not None
        return url.host, url.port

    def files(self) -> list[str]:
        """Every file and folder of the data folder, except the database and lock files."""
        root = self.settings.data_dir
        found = (path.relative_to(root).as_posix() for path in root.rglob("*"))
        return sorted(name for name in found if "sqlite" not in name and not name.endswith(".lock"))


class _Server(uvicorn.Server):
    """Says when it has started, or failed to."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.settled = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.settled.set()


@contextmanager
def running_service(settings: AppSettings) -> Iterator[Service]:
    app = create_app(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    server = _Server(
        uvicorn.Config(app, http=ProblemProtocol, log_config=None, timeout_graceful_shutdown=5)
    )
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        assert server.settled.wait(60)
        assert server.started
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
            yield Service(app, settings, http)
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
        assert not thread.is_alive()


Serve = Callable[..., Service]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Starts services with the given settings, each on a data folder of its own."""
    running = []

    def start(**settings: Any) -> Service:
        folder = tmp_path_factory.mktemp("data")
        context = running_service(AppSettings(data_dir=folder, **settings))
        running.append(context)
        return context.__enter__()

    try:
        yield start
    finally:
        for context in reversed(running):
            context.__exit__(None, None, None)


@pytest.fixture(scope="module")
def service(serve: Serve) -> Service:
    """A service that a whole test module shares."""
    return serve(
        max_body_bytes=200_000,
        max_image_bytes=50_000,
        max_image_pixels=100_000,
        max_images_per_request=8,
        max_queue_images=16,
        max_checkpoint_bytes=4_000_000,
        max_archive_bytes=1_000_000,
        body_idle_s=20,
    )


def tiny_artifact(seed: int = 0) -> Artifact:
    """A binary convolution and a binary linear layer for 8 x 8 colour images, three classes."""
    generator = np.random.default_rng(seed)
    plan = Plan(
        input_shape=(3, 8, 8),
        nodes=(
            Conv2d(
                name="conv",
                input=INPUT,
                channels=4,
                kernel=(3, 3),
                stride=(2, 2),
                affine=True,
                activation=Activation("relu"),
            ),
            Flatten(name="flat", input="conv"),
            Linear(name="fc", input="flat", channels=3, affine=True),
        ),
        output="fc",
    )
    tensors: dict[str, NDArray[Any]] = {}
    for name, spec in plan.tensors.items():
        if spec.dtype == "F32":
            tensors[name] = generator.uniform(0.05, 0.1, spec.shape).astype(np.float32)
    # 27 and 36 bits: the padding bits of a row's last byte are 0.
    for name, count in (("conv.bits", 27), ("fc.bits", 36)):
        rows = plan.tensors[name].shape[1]
        codes = generator.integers(0, 2, (1, rows, count), dtype=np.uint8)
        tensors[name] = np.packbits(codes, axis=-1, bitorder="little")
    return Artifact(plan, tensors, INPUT_SPEC, LABELS, {"seed": seed}, {"packed": 0.75})


def spec_of(name: str) -> CompressSpec:
    return CompressSpec(name=name, architecture="vgg9", dataset="animals")


Publish = Callable[..., ModelVersion]


@pytest.fixture
def publish(tmp_path: Path) -> Publish:
    """Publishes a tiny model, or the one given, in a service's store, as a worker would."""

    def do(
        service: Service,
        name: str,
        seed: int = 0,
        job_id: str | None = None,
        artifact: Artifact | None = None,
        report: Mapping[str, Any] | None = None,
        **more_accuracies: float,
    ) -> ModelVersion:
        artifacts.write(artifact or tiny_artifact(seed), tmp_path / "artifact.safetensors")
        measured = {
            "spec": spec_of(name).model_dump(mode="json"),
            "accuracy": {"full_precision": 0.875, "calibrated": 0.8, "packed": 0.75}
            | more_accuracies,
            "bytes": {"float": 4096, "packed": 1024},
            "compression_ratio": 4.0,
            **(report or {}),
        }
        (tmp_path / "report.json").write_text(json.dumps(measured))
        (tmp_path / "predictions.json").write_text("{}")
        models = ModelStore(service.settings.models_dir)
        return models.publish(tmp_path, name, job_id or f"job-of-{name}-{seed}")

    return do


def png(pixels: NDArray[np.uint8]) -> bytes:
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


def random_png(seed: int, height: int = 8, width: int = 8) -> bytes:
    generator = np.random.default_rng(seed)
    return png(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def images() -> list[bytes]:
    """Five small images: four of the network's size, one larger."""
    return [random_png(seed) for seed in range(4)] + [random_png(4, 20, 30)]


def zip_of(files: Mapping[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target.getvalue()


@pytest.fixture(scope="session")
def archive() -> bytes:
    """A dataset of three classes with two images each, as a zip."""
    return zip_of(
        {f"{label}/{index}.png": random_png(index) for label in LABELS for index in range(2)}
    )


@pytest.fixture(scope="session")
def tests_only() -> bytes:
    """A dataset with a test split alone, as a zip."""
    return zip_of({f"test/{label}/1.png": random_png(1) for label in LABELS})

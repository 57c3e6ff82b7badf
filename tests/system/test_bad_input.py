"""Hostile and mistaken input against the running service, as processes of their own.

Each case of the table is answered at once with a problem that names field and remedy, or, where
only loading the file can tell, is a failed job with that problem. Then everything is as it was.
"""

import base64
import io
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image

from client.client import Client
from models import artifact as artifacts
from models import registry
from models.artifact import Artifact
from models.lowering import lower
from models.preprocessing import InputSpec
from store.artifacts import ModelStore

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DEADLINE_S = 600
MIB = 2**20
LABELS = ("cat", "dog", "owl")
LIMITS = {
    "max_checkpoint_bytes": 2 * MIB,
    "max_archive_bytes": MIB,
    "max_dataset_bytes": 4 * MIB,
    "max_body_bytes": MIB // 4,
    "max_image_bytes": MIB // 8,
    "max_images_per_request": 4,
    "queue_poll_s": 0.1,
    # No more patience than a test has.
    "request_head_s": 0.5,
    "body_idle_s": 0.5,
    "predict_body_s": 1,
}
SPEC: dict[str, Any] = {
    "name": "victim",
    "architecture": "digits_cnn",
    "dataset": "animals",
    "input": {"channels": 1, "height": 8, "width": 8},
    "calibration_images": 4,
}


# What is sent: images and datasets


def png(seed: int = 0, side: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


def claiming_png(width: int, height: int) -> bytes:
    """A PNG whose header claims any size, and which holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def zip_of(files: Mapping[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target.getvalue()


def tar_with(**member: Any) -> bytes:
    """A sound dataset as a tar, with one more member."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, data in animals().items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo()
        for attribute, value in member.items():
            setattr(info, attribute, value)
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    return target.getvalue()


def arrays(**content: Any) -> bytes:
    """A dataset as numpy writes it."""
    target = io.BytesIO()
    np.savez(target, **content)
    return target.getvalue()


def grey(count: int = 4) -> Any:
    return np.zeros((count, 8, 8), np.uint8)


def cifar(batch: bytes) -> bytes:
    """CIFAR-10 as its authors publish it, but for what its batches hold."""
    names = [f"data_batch_{number}" for number in range(1, 6)]
    meta = pickle.dumps({b"label_names": [b"%d" % number for number in range(10)]}, protocol=2)
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for name in (*names, "test_batch", "batches.meta"):
            data = meta if name == "batches.meta" else batch
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


def animals(labels: tuple[str, ...] = LABELS, images: int = 10) -> dict[str, bytes]:
    return {f"{label}/{n}.png": png(n) for label in labels for n in range(images)}


# What is sent: checkpoints


MARKER = Path(tempfile.gettempdir()) / f"bitpress-payload-of-{os.getpid()}"


class Payload:
    """Pickled, it writes the file `MARKER` when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (MARKER,))


def state(architecture: str = "digits_cnn", classes: int = 3, **parameters: Any) -> dict[str, Any]:
    shapes = registry.expected_shapes(
        architecture, channels=1, height=8, width=8, classes=classes, parameters=parameters
    )
    generator = torch.Generator().manual_seed(0)
    # Variances must be positive; everything else may be.
    return {key: torch.rand(shape, generator=generator) + 0.1 for key, shape in shapes.items()}


def safe(tensors: Mapping[str, torch.Tensor]) -> bytes:
    return safetensors.numpy.save({key: tensor.numpy() for key, tensor in tensors.items()})


def torch_file(content: Any, *, legacy: bool = False) -> bytes:
    target = io.BytesIO()
    torch.save(content, target, _use_new_zipfile_serialization=not legacy)
    return target.getvalue()


def claiming_torch_file() -> bytes:
    """A sound legacy file but for a storage that claims to be of 8.6 GB."""
    numel = 70_001
    claimed = b"J" + struct.pack("<i", 2**31 - 1)
    whole = torch_file({"w": torch.zeros(numel)}, legacy=True)
    return whole.replace(b"J" + struct.pack("<i", numel), claimed)


def malicious(*, legacy: bool) -> bytes:
    return torch_file({"state_dict": {**state(), "extra": Payload()}}, legacy=legacy)


def misshaped() -> dict[str, Any]:
    tensors = state()
    tensors["classifier.weight"] = tensors["classifier.weight"].T.contiguous()
    return tensors


def with_nan() -> dict[str, Any]:
    tensors = state()
    tensors["classifier.bias"][1] = float("nan")
    return tensors


# The service


@dataclass(frozen=True)
class Service:
    """Both processes; ``state`` is what a refused request must not change."""

    http: httpx.Client
    data_dir: Path
    scratch: Path
    app: "subprocess.Popen[bytes]"
    worker: "subprocess.Popen[bytes]"

    def state(self) -> dict[str, Any]:
        """Everything that a request could leave, but the jobs and their uploads."""
        listed = {name: self.http.get(f"/{name}").json() for name in ("models", "datasets")}
        files = {
            path.relative_to(self.data_dir).as_posix()
            for path in self.data_dir.rglob("*")
            # Lock files are made once and stay; so are the folders that hold work in progress.
            if "sqlite" not in path.name and path.name not in (".lock", ".tmp", "jobs", "cache")
        }
        uploads = {name for name in files if name.startswith("uploads/sha256/")}
        return {
            **listed,
            "files": files - uploads,
            "uploads": uploads,
            "jobs": len(self.http.get("/jobs?limit=200").json()["jobs"]),
            "temporary files": list(self.scratch.iterdir()),
            "children": children(self.app.pid) | children(self.worker.pid),
            "alive": (self.app.poll(), self.worker.poll()),
        }


def children(pid: int) -> set[int]:
    """The living child processes of ``pid``."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        found.update(int(child) for child in (task / "children").read_text().split())
    return found


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    scratch = folder / "tmp"
    scratch.mkdir()
    settings = {**LIMITS, "data_dir": folder / "data", "port": 0}
    environment = {
        **os.environ,
        **{f"BITPRESS_{name.upper()}": str(value) for name, value in settings.items()},
        "TMPDIR": str(scratch),
        "OMP_NUM_THREADS": "1",
    }
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-m", name], cwd=ROOT, env=environment, stderr=subprocess.PIPE
        )
        for name in ("app", "worker")
    }
    logs = {name: Log(process) for name, process in processes.items()}
    app, worker = processes["app"], processes["worker"]
    try:
        url = logs["app"].wait_for("listening on").rpartition(" ")[2]
        with httpx.Client(base_url=url, timeout=DEADLINE_S, trust_env=False) as http:
            publish_model(folder, folder / "data" / "models")
            damaged = {**animals(), "cat/5.png": png(5)[:-30]}
            for name, files in (("animals", animals()), ("damaged", damaged)):
                assert dataset(zip_of(files), name)(http).status_code == 201
            yield Service(http, folder / "data", scratch, app, worker)
    finally:
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
        for name, process in processes.items():
            process.wait(DEADLINE_S)
            logs[name].thread.join(DEADLINE_S)
    assert [app.returncode, worker.returncode] == [0, 0]
    assert not [line for line in logs["app"].lines if json.loads(line)["level"] == "error"]


class Log:
    """Reads a process's log as it is written: a full pipe would stop the process."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.lines: list[str] = []
        self.news = threading.Condition()
        self.thread = threading.Thread(target=self._read, args=(process,), daemon=True)
        self.thread.start()

    def _read(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stderr is not None
        with process.stderr as log:
            for line in log:
                with self.news:
                    self.lines.append(line.decode())
                    self.news.notify_all()

    def wait_for(self, text: str) -> str:
        """Return the event with ``text``, once it is there."""

        def found() -> str | None:
            return next((line for line in self.lines if text in line), None)

        with self.news:
            line = self.news.wait_for(found, DEADLINE_S)
        assert line is not None
        return str(json.loads(line)["event"])


def publish_model(folder: Path, models: Path) -> None:
    """Publish a network with random weights, as a worker would."""
    torch.manual_seed(0)
    network = registry.build(
        "digits_cnn", channels=1, height=8, width=8, classes=3, parameters={}
    ).eval()
    plan, tensors = lower(network, (1, 8, 8))
    staged = folder / "staged"
    staged.mkdir()
    fed = InputSpec(1, 8, 8, (0.0,), (1.0,))
    model = Artifact(plan, tensors, fed, LABELS, {}, {})
    artifacts.write(model, staged / "artifact.safetensors")
    report = {
        "spec": {"architecture": "digits_cnn", "method": {"name": "bwn"}},
        "accuracy": {"full_precision": 0.0, "calibrated": 0.0, "packed": 0.0},
        "bytes": {"float": 1, "packed": 1},
        "compression_ratio": 1.0,
    }
    (staged / "report.json").write_text(json.dumps(report))
    (staged / "predictions.json").write_text("{}")
    ModelStore(models).publish(staged, "served", "somebody")


# The table


Send = Callable[[httpx.Client], httpx.Response]


@dataclass(frozen=True)
class Case:
    """What is sent, and the field and the kind of problem that must come back.

    ``as_job``: only loading can tell, so the request is accepted and the job fails.
    """

    send: Send
    field: str | None
    kind: str
    status: int = 422
    as_job: bool = False


def compress(checkpoint: bytes | None = None, /, **changes: Any) -> Send:
    spec = json.dumps({**SPEC, **changes})
    parts: dict[str, Any] = {"spec": (None, spec)}
    if checkpoint is not None:
        parts["checkpoint"] = ("checkpoint", checkpoint)
    return lambda http: http.post("/compress", files=parts)


def dataset(archive: bytes, name: str = "hostile") -> Send:
    return lambda http: http.post(
        "/datasets", data={"name": name}, files={"archive": ("archive", archive)}
    )


def predict(image: bytes, **options: Any) -> Send:
    return lambda http: http.post(
        "/predict",
        params={"model": "served", **options},
        content=image,
        headers={"Content-Type": "image/png"},
    )


def raw(path: str, body: bytes, content_type: str) -> Send:
    return lambda http: http.post(path, content=body, headers={"Content-Type": content_type})


def json_body(**body: Any) -> Send:
    return lambda http: http.post("/predict", json={"model": "served", **body})


def send(method: str, path: str, **options: Any) -> Send:
    return lambda http: http.request(method, path, **options)


def dry_run(value: str = "true", /, **changes: Any) -> Send:
    parts = {"spec": (None, json.dumps({**SPEC, **changes}))}
    return lambda http: http.post("/compress", params={"dry_run": value}, files=parts)


def keyed(key: bytes) -> Send:
    parts: dict[str, Any] = {"spec": (None, json.dumps(SPEC)), "checkpoint": ("net", GOOD)}
    return lambda http: http.post("/compress", files=parts, headers={b"Idempotency-Key": key})


def alias(name: str, version: Any = 1, model: str = "served") -> Send:
    return send("PUT", f"/models/{model}/aliases/{name}", json={"version": version})


def alias_body(body: bytes, content_type: str = "application/json") -> Send:
    path, headers = "/models/served/aliases/live", {"Content-Type": content_type}
    return send("PUT", path, content=body, headers=headers)


def root(**body: Any) -> Send:
    return send("POST", "/datasets", json={"name": "hostile", **body})


def wire(*pieces: bytes) -> Send:
    """Send these very bytes, and read what comes until the service closes the connection.

    Of several, the last is sent again and again for as long as the connection is open. A single one
    is sent once: what reaches a connection that was closed can cost the answer that waits in it.
    """
    once, again = (pieces[:-1], pieces[-1]) if len(pieces) > 1 else (pieces, b"")

    def talk(http: httpx.Client) -> httpx.Response:
        address = (http.base_url.host, http.base_url.port)
        with socket.create_connection(address, timeout=DEADLINE_S) as line:
            for piece in once:
                line.sendall(piece)
            line.settimeout(0.02)
            received, deadline = b"", time.monotonic() + DEADLINE_S
            while time.monotonic() < deadline:
                try:
                    line.sendall(again)
                    if not (data := line.recv(65536)):
                        return parsed(received)
                    received += data
                except TimeoutError:
                    continue
                except ConnectionError:
                    return parsed(received)
        raise AssertionError(f"still open: {received!r}")

    return talk


def parsed(received: bytes) -> httpx.Response:
    """The last of the answers that were received."""
    head, _, body = received[received.rindex(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = [tuple(line.split(": ", 1)) for line in lines]
    return httpx.Response(int(first.split()[1]), headers=headers, content=body)


def request(line: bytes, *headers: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([line, b"Host: here", *headers, b"", body])


GOOD = safe(state())
NO_JOB = "0" * 32
FORM = b"Content-Type: multipart/form-data; boundary=b"
JSON = b"Content-Type: application/json"
CHUNKED = b"Transfer-Encoding: chunked"
CHUNK = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
PART = b'--b\r\nContent-Disposition: form-data; name="archive"; filename="a"\r\n\r\n'
HEALTH = b"GET /health/live HTTP/1.1"
DATASETS = b"POST /datasets HTTP/1.1"
PREDICT = b"POST /predict HTTP/1.1"
BOMB = zip_of({"archive/data.pkl": bytes(100 * MIB)})
IMAGE = base64.b64encode(png()).decode()

CASES: dict[str, Case] = {
    # Checkpoints
    "empty checkpoint": Case(compress(b""), "checkpoint", "invalid-checkpoint"),
    "truncated safetensors": Case(compress(GOOD[:-1]), "checkpoint", "invalid-checkpoint"),
    "truncated torch file": Case(
        compress(torch_file(state())[:-100]), "checkpoint", "invalid-checkpoint"
    ),
    "header longer than the file": Case(
        compress(struct.pack("<Q", 2**62) + b"{}" + bytes(100)), "checkpoint", "invalid-checkpoint"
    ),
    "zip bomb as checkpoint": Case(compress(BOMB), "checkpoint", "invalid-checkpoint"),
    "text as checkpoint": Case(compress(b"weights\n" * 99), "checkpoint", "invalid-checkpoint"),
    "bare pickle": Case(compress(pickle.dumps({"a": 1})), "checkpoint", "invalid-checkpoint"),
    "checkpoint of another network": Case(
        compress(safe(state("resnet20"))), "checkpoint", "checkpoint-mismatch"
    ),
    "wrong shapes": Case(compress(safe(misshaped())), "checkpoint", "checkpoint-mismatch"),
    "wrong class count": Case(
        compress(safe(state(classes=10))), "checkpoint", "checkpoint-mismatch"
    ),
    "checkpoint over the limit": Case(
        compress(bytes(2 * MIB + 1)), "checkpoint", "too-large", status=413
    ),
    "body over the limit": Case(compress(bytes(8 * MIB)), "checkpoint", "too-large", status=413),
    "no checkpoint": Case(compress(), "checkpoint", "invalid-spec"),
    "unknown digest": Case(
        compress(None, **{"checkpoint": "sha256:" + "0" * 64}), "spec.checkpoint", "invalid-spec"
    ),
    "wrong keys in a torch file": Case(
        compress(torch_file({"state_dict": {"layer.weight": torch.zeros(3)}})),
        "checkpoint",
        "checkpoint-mismatch",
        as_job=True,
    ),
    "NaN in safetensors": Case(
        compress(safe(with_nan())), "checkpoint", "invalid-checkpoint", as_job=True
    ),
    "NaN in a torch file": Case(
        compress(torch_file(with_nan())), "checkpoint", "invalid-checkpoint", as_job=True
    ),
    "torch file that claims gigabytes": Case(
        compress(claiming_torch_file()), "checkpoint", "too-large", as_job=True
    ),
    "malicious pickle": Case(
        compress(malicious(legacy=False)), "checkpoint", "invalid-checkpoint", as_job=True
    ),
    "malicious legacy pickle": Case(
        compress(malicious(legacy=True)), "checkpoint", "invalid-checkpoint", as_job=True
    ),
    # The specification
    "spec that is no JSON": Case(
        lambda http: http.post("/compress", files={"spec": (None, "{")}), "spec", "invalid-spec"
    ),
    "unknown field": Case(compress(GOOD, colour="red"), "spec.colour", "invalid-spec"),
    "model name with a parent path": Case(
        compress(GOOD, name="../victim"), "spec.name", "invalid-spec"
    ),
    "unknown architecture": Case(
        compress(GOOD, architecture="vgg1000"), "spec.architecture", "invalid-spec"
    ),
    "unknown architecture parameter": Case(
        compress(GOOD, architecture_parameters={"depth": 9}),
        "spec.architecture_parameters.depth",
        "invalid-spec",
    ),
    "gigantic architecture": Case(
        compress(GOOD, architecture="vgg9", architecture_parameters={"width": 1e12}),
        "spec.architecture_parameters.width",
        "invalid-spec",
    ),
    "unknown method": Case(
        compress(GOOD, method={"name": "magic"}), "spec.method.name", "invalid-spec"
    ),
    "unknown method parameter": Case(
        compress(GOOD, method={"name": "bwnh", "swept": 1}), "spec.method.swept", "invalid-spec"
    ),
    "method parameter out of range": Case(
        compress(GOOD, method={"name": "bwnh", "sweeps": -1}), "spec.method.sweeps", "invalid-spec"
    ),
    "unknown layer": Case(
        compress(GOOD, keep_float=["../conv"]), "spec.keep_float.0", "invalid-spec"
    ),
    "unknown dataset": Case(compress(GOOD, dataset="plants"), "spec.dataset", "invalid-spec"),
    # Datasets
    "dataset without images": Case(
        dataset(zip_of({"cat/notes.txt": b"none", "dog/more.txt": b"none"})),
        "archive",
        "invalid-dataset",
    ),
    "dataset with one class": Case(
        dataset(zip_of(animals(("cat",)))), "archive", "invalid-dataset"
    ),
    "dataset with a symbolic link": Case(
        dataset(tar_with(name="cat/link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
        "archive",
        "invalid-dataset",
    ),
    "dataset with a hard link": Case(
        dataset(tar_with(name="cat/link.png", type=tarfile.LNKTYPE, linkname="dog/0.png")),
        "archive",
        "invalid-dataset",
    ),
    "dataset with a device": Case(
        dataset(tar_with(name="cat/zero.png", type=tarfile.CHRTYPE)), "archive", "invalid-dataset"
    ),
    "dataset with a parent path": Case(
        dataset(zip_of({**animals(), "../../cat/escaped.png": png()})),
        "archive",
        "invalid-dataset",
    ),
    "dataset with an absolute path": Case(
        dataset(tar_with(name="/tmp/cat/escaped.png")), "archive", "invalid-dataset"
    ),
    "zip bomb as dataset": Case(
        dataset(zip_of({**animals(), "cat/bomb.png": png() + bytes(100 * MIB)})),
        "archive",
        "too-large",
        status=413,
    ),
    "dataset of a splinter": Case(dataset(zip_of(animals())[:-200]), "archive", "invalid-dataset"),
    "text as dataset": Case(dataset(b"no archive at all"), "archive", "invalid-dataset"),
    "file that is no image": Case(
        dataset(zip_of({**animals(), "cat/zero.png": b""})), "archive", "invalid-dataset"
    ),
    "dataset name with a parent path": Case(
        dataset(zip_of(animals()), "../hostile"), "name", "invalid-input"
    ),
    "dataset over the limit": Case(dataset(bytes(MIB + 1)), "archive", "too-large", status=413),
    "images that only decoding shows to be damaged": Case(
        compress(GOOD, dataset="damaged"), "spec.dataset", "invalid-dataset", as_job=True
    ),
    "dataset name that is taken": Case(
        dataset(zip_of(animals(images=2)), "animals"), "name", "conflict", status=409
    ),
    # Predictions
    "image of 0 bytes": Case(predict(b""), "body", "invalid-image"),
    "image of 1 x 1 pixel": Case(predict(png(side=1)), "body", "invalid-image"),
    "header that claims 10^9 pixels": Case(
        predict(claiming_png(40_000, 25_000)), "body", "invalid-image"
    ),
    "image without pixels": Case(predict(claiming_png(8, 8)), "body", "invalid-image"),
    "text as image": Case(predict(b"no image"), "body", "invalid-image"),
    "image over the limit": Case(predict(png() + bytes(MIB // 8)), "body", "too-large", status=413),
    "prediction over the limit": Case(
        predict(png() + bytes(MIB // 4)), None, "too-large", status=413
    ),
    "image that is no base64": Case(json_body(images=["*"]), "images[0]", "invalid-image"),
    "too many images": Case(json_body(images=[IMAGE] * 5), "images", "too-large", status=413),
    "no image": Case(json_body(images=[]), "images", "invalid-input"),
    "unknown model": Case(predict(png(), model="absent"), "model", "not-found", status=404),
    "unknown version": Case(predict(png(), version=9), "version", "not-found", status=404),
    "prediction with a parent path": Case(
        predict(png(), model="../served"), "model", "invalid-input"
    ),
    "no labels wanted": Case(predict(png(), top_k=0), "top_k", "invalid-input"),
    # Bodies
    "broken JSON": Case(
        raw("/predict", b'{"model":', "application/json"), None, "malformed-body", status=400
    ),
    "deeply nested JSON": Case(
        raw("/predict", b"[" * 100_000, "application/json"), None, "malformed-body", status=400
    ),
    "broken multipart": Case(
        raw("/compress", b"--b\r\nno header", "multipart/form-data; boundary=b"),
        None,
        "malformed-body",
        status=400,
    ),
    "another media type": Case(
        raw("/datasets", b"x", "text/plain"), "Content-Type", "unsupported-media-type", status=415
    ),
    "artifact with a parent path": Case(
        lambda http: http.get("/models/%2e%2e%2fserved/versions/1/artifact"),
        None,
        "not-found",
        status=404,
    ),
    # Jobs under control
    "events of no job": Case(send("GET", f"/jobs/{NO_JOB}/events"), None, "not-found", status=404),
    "events behind a word": Case(
        send("GET", f"/jobs/{NO_JOB}/events", headers={"Last-Event-ID": "last"}),
        "Last-Event-ID",
        "invalid-input",
    ),
    "events behind a negative number": Case(
        send("GET", f"/jobs/{NO_JOB}/events?after=-1"), "after", "invalid-input"
    ),
    "no job to cancel": Case(send("POST", f"/jobs/{NO_JOB}/cancel"), None, "not-found", status=404),
    "parent path to cancel": Case(send("POST", "/jobs/%2e%2e/cancel"), "job_id", "invalid-input"),
    "no job to retry": Case(send("POST", f"/jobs/{NO_JOB}/retry"), None, "not-found", status=404),
    "no job to delete": Case(send("DELETE", f"/jobs/{NO_JOB}"), None, "not-found", status=404),
    "id of no end": Case(send("GET", "/jobs/" + "a" * 5000), "job_id", "invalid-input"),
    "cursor of zeros": Case(send("GET", "/jobs?cursor=%00%ff"), "cursor", "invalid-input"),
    "cursor of SQL": Case(send("GET", "/jobs?cursor=' OR 1=1 --"), "cursor", "invalid-input"),
    "page of a million": Case(send("GET", "/jobs?limit=1000000"), "limit", "invalid-input"),
    "unknown state": Case(send("GET", "/jobs?state=lost"), "state.0", "invalid-input"),
    "filter with a parent path": Case(send("GET", "/jobs?model=../x"), "model", "invalid-input"),
    "key that is too long": Case(keyed(b"k" * 256), "Idempotency-Key", "invalid-input"),
    "key of nothing": Case(keyed(b""), "Idempotency-Key", "invalid-input"),
    "key with a space": Case(keyed(b"a b"), "Idempotency-Key", "invalid-input"),
    "key in another encoding": Case(keyed(b"k\xe9"), "Idempotency-Key", "invalid-input"),
    "dry run, perhaps": Case(dry_run("perhaps"), "dry_run", "invalid-input"),
    "dry run on no dataset": Case(dry_run(dataset="plants"), "spec.dataset", "invalid-spec"),
    "dry run with an impossible gate": Case(
        dry_run(max_accuracy_drop=2), "spec.max_accuracy_drop", "invalid-spec"
    ),
    # Models under control
    "alias with a parent path": Case(alias("%2e%2e"), "alias", "invalid-input"),
    "alias that is taken for all time": Case(alias("latest"), "alias", "invalid-input"),
    "alias with a slash": Case(alias("a%2fb"), None, "not-found", status=404),
    "alias of an unknown version": Case(alias("live", 99), "version", "not-found", status=404),
    "alias of an unknown model": Case(
        alias("live", model="absent"), "name", "not-found", status=404
    ),
    "alias of a gigantic version": Case(alias("live", 10**40), "version", "invalid-input"),
    "alias of a word": Case(alias("live", "one"), "version", "invalid-input"),
    "alias body over the limit": Case(alias_body(b" " * MIB), None, "too-large", status=413),
    "alias body that is no JSON": Case(alias_body(b"{"), None, "malformed-body", status=400),
    "alias body of another type": Case(
        alias_body(b"1", "text/plain"), "Content-Type", "unsupported-media-type", status=415
    ),
    "no alias to delete": Case(
        send("DELETE", "/models/served/aliases/absent"), "alias", "not-found", status=404
    ),
    "no model to delete": Case(send("DELETE", "/models/absent"), "name", "not-found", status=404),
    "no version to delete": Case(
        send("DELETE", "/models/served/versions/99"), "version", "not-found", status=404
    ),
    "prediction by an impossible alias": Case(
        predict(png(), version="../"), "version", "invalid-input"
    ),
    # More datasets
    "root that nobody configured": Case(root(root="absent"), "root", "invalid-dataset"),
    "root that is a path": Case(root(root="/etc"), "root", "invalid-input"),
    "root with a parent path": Case(root(root="../.."), "root", "invalid-input"),
    "root and more": Case(root(root="absent", more=1), "more", "invalid-input"),
    "root in a list": Case(send("POST", "/datasets", json=[]), None, "invalid-input"),
    "root in broken JSON": Case(
        raw("/datasets", b"{", "application/json"), None, "malformed-body", status=400
    ),
    "root over the limit": Case(
        raw("/datasets", b" " * MIB, "application/json"), None, "too-large", status=413
    ),
    "datasets behind nothing": Case(send("GET", "/datasets?cursor=%00"), "cursor", "invalid-input"),
    "sheet of an unknown dataset": Case(
        send("GET", "/datasets/absent/sheet"), "name", "not-found", status=404
    ),
    "sheet of a million": Case(
        send("GET", "/datasets/animals/sheet?samples=1000000"), "samples", "invalid-input"
    ),
    "no dataset to delete": Case(
        send("DELETE", "/datasets/absent"), "name", "not-found", status=404
    ),
    "arrays of objects": Case(
        dataset(arrays(x_train=np.array([{}] * 4, object), y_train=np.zeros(4, np.int64))),
        "archive",
        "invalid-dataset",
    ),
    "array that lies about its shape": Case(
        dataset(
            arrays(x_train=grey(), y_train=np.array([0, 1, 0, 1])).replace(
                b"(4, 8, 8)", b"(9, 9, 9)"
            )
        ),
        "archive",
        "invalid-dataset",
    ),
    "arrays cut short": Case(
        dataset(arrays(x_train=grey(), y_train=np.array([0, 1, 0, 1]))[:-30]),
        "archive",
        "invalid-dataset",
    ),
    "arrays of no meaning": Case(dataset(arrays(a=grey())), "archive", "invalid-dataset"),
    "arrays of NaN": Case(
        dataset(arrays(x_train=np.full((4, 8, 8), np.nan), y_train=np.array([0, 1, 0, 1]))),
        "archive",
        "invalid-dataset",
    ),
    "labels below zero": Case(
        dataset(arrays(x_train=grey(), y_train=np.array([0, 1, 0, -1]))),
        "archive",
        "invalid-dataset",
    ),
    "too few labels": Case(
        dataset(arrays(x_train=grey(), y_train=np.array([0, 1]))), "archive", "invalid-dataset"
    ),
    "malicious pickle as CIFAR": Case(
        dataset(cifar(pickle.dumps(Payload()))), "archive", "invalid-dataset"
    ),
    "text as CIFAR": Case(dataset(cifar(b"text")), "archive", "invalid-dataset"),
    "CIFAR that lies about its images": Case(
        dataset(cifar(pickle.dumps({b"data": b"12", b"labels": [1]}))), "archive", "invalid-dataset"
    ),
    # Connections
    "no HTTP at all": Case(
        wire(b"\x16\x03\x01\x02\x00" * 9), None, "malformed-request", status=400
    ),
    "head in drops": Case(wire(HEALTH + b"\r\n", b"x: y\r\n"), None, "request-timeout", status=408),
    "head of no end": Case(
        wire(HEALTH + b"\r\nx: ", b"y" * 0x4000), None, "malformed-request", status=400
    ),
    "line of no end": Case(wire(b"GET /", b"y" * 0x4000), None, "malformed-request", status=400),
    "header without a name": Case(
        wire(request(HEALTH, b": x")), None, "malformed-request", status=400
    ),
    "header with a zero": Case(
        wire(request(HEALTH, b"x: a\x00b")), None, "malformed-request", status=400
    ),
    "no host": Case(wire(HEALTH + b"\r\n\r\n"), None, "malformed-request", status=400),
    "two hosts": Case(wire(request(HEALTH, b"Host: there")), None, "malformed-request", status=400),
    "two lengths": Case(
        wire(request(PREDICT, b"Content-Length: 2", b"Content-Length: 3", body=b"{}")),
        None,
        "malformed-request",
        status=400,
    ),
    "length below zero": Case(
        wire(request(PREDICT, b"Content-Length: -1")), None, "malformed-request", status=400
    ),
    "length that claims gigabytes": Case(
        wire(request(PREDICT, JSON, b"Content-Length: 9999999999"), b"{"),
        None,
        "too-large",
        status=413,
    ),
    "length that is longer than the body": Case(
        wire(request(PREDICT, JSON, b"Content-Length: 99"), b"{", b""),
        None,
        "request-timeout",
        status=408,
    ),
    "archive that never comes": Case(
        wire(request(DATASETS, FORM, b"Content-Length: 99"), b"--b\r\n", b""),
        None,
        "request-timeout",
        status=408,
    ),
    "chunks of no end": Case(
        wire(request(PREDICT, JSON, CHUNKED), CHUNK), None, "too-large", status=413
    ),
    "chunks of no end in a form": Case(
        wire(request(DATASETS, FORM, CHUNKED), b"%x\r\n%b\r\n" % (len(PART), PART), CHUNK),
        "archive",
        "too-large",
        status=413,
    ),
    "chunks of no end where there is no body": Case(
        wire(request(b"DELETE /jobs/.. HTTP/1.1", CHUNKED), CHUNK),
        "job_id",
        "invalid-input",
    ),
    "chunk of no size": Case(
        wire(request(PREDICT, JSON, CHUNKED, body=b"zz\r\n")), None, "malformed-request", status=400
    ),
    "body in drops": Case(
        wire(request(PREDICT, JSON, CHUNKED), b"1\r\n \r\n"), None, "request-timeout", status=408
    ),
    "unknown coding": Case(
        wire(request(PREDICT, JSON, b"Transfer-Encoding: gzip", body=b"x")),
        None,
        "malformed-request",
        status=400,
    ),
    "JSON in another encoding": Case(
        raw("/predict", '{"model": "served"}'.encode("utf-16"), "application/json"),
        None,
        "malformed-body",
        status=400,
    ),
    "garbage behind a request": Case(
        wire(request(HEALTH) + b"\x00\x01garbage\r\n\r\n"), None, "malformed-request", status=400
    ),
    "request of another age": Case(
        wire(b"POST /predict HTTP/1.0\r\nContent-Type: text/plain\r\n\r\n"),
        "Content-Type",
        "unsupported-media-type",
        status=415,
    ),
    "body that waits to be wanted": Case(
        wire(request(PREDICT, b"Content-Type: text/plain", b"Expect: 100-continue", CHUNKED), b""),
        "Content-Type",
        "unsupported-media-type",
        status=415,
    ),
}


@pytest.mark.parametrize("legacy", [False, True])
def test_the_payload_runs_where_nobody_takes_care(legacy: bool) -> None:
    # Without this, that the payload did not run would prove nothing.
    torch.load(io.BytesIO(malicious(legacy=legacy)), weights_only=False)
    assert MARKER.exists()
    MARKER.unlink()


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_told_and_leaves_nothing(service: Service, name: str) -> None:
    case = CASES[name]
    before = service.state()
    answer = case.send(service.http)
    if case.as_job:
        assert answer.status_code == 202
        with Client(str(service.http.base_url)) as client:
            job = client.wait(answer.json()["id"], interval_s=0.1)
        assert job.state == "failed"
        problem = service.http.get(f"/jobs/{job.id}").json()["problem"]
        assert service.http.get(f"/jobs/{job.id}/report").status_code == 404
        # The record of the failed job is there to stay, and so is a sound checkpoint: in
        # another job it may be of use.
        before["jobs"] += 1
        if case.kind != "invalid-checkpoint":
            before["uploads"].add(f"uploads/sha256/{job.spec['checkpoint'].partition(':')[2]}")
    else:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.status_code == case.status
        problem = answer.json()
    assert problem["type"] == f"urn:bitpress:problem:{case.kind}"
    assert problem.get("field") == case.field
    assert problem["detail"]
    assert problem["remedy"]
    assert str(service.data_dir) not in json.dumps(problem)
    assert "Traceback" not in json.dumps(problem)
    assert service.state() == before
    assert not MARKER.exists()


def figures_of(service: Service) -> dict[str, Any]:
    """What a process holds, beside its files: memory in MiB, handles, threads, children."""
    found: dict[str, Any] = {}
    for process in (service.app, service.worker):
        folder = Path(f"/proc/{process.pid}")
        status = dict(
            line.split(":", 1) for line in (folder / "status").read_text().splitlines() if line
        )
        found[str(process.args[-1])] = {  # type: ignore[index]
            "memory_mib": int(status["VmRSS"].split()[0]) / 1024,
            "handles": len([*(folder / "fd").iterdir()]),
            "threads": int(status["Threads"]),
            "children": len(children(process.pid)),
        }
    return found


def test_nothing_is_held_after_any_number_of_bad_requests(
    service: Service, wait_until: Any
) -> None:
    def all_at_once() -> dict[str, Any]:
        for case in CASES.values():
            if not case.as_job:
                case.send(service.http)
        service.http.get("/health/live")
        return figures_of(service)

    warm = all_at_once()
    all_at_once()

    def as_before() -> bool:
        # Idle connections and threads go after a while.
        return all(
            now["memory_mib"] <= then["memory_mib"] + 32
            and now["handles"] <= then["handles"]
            and now["threads"] <= then["threads"]
            and now["children"] == 0
            for now, then in zip(figures_of(service).values(), warm.values(), strict=True)
        )

    wait_until(as_before, f"what was held before: {warm}")
    assert not [*service.scratch.iterdir()]

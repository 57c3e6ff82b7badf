"""Archives, honest and hostile; code in a process of its own, which tests can kill."""

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import sqlalchemy as sa

from store.database import open_engine

REPOSITORY = Path(__file__).parents[2]

Spawn = Callable[..., "subprocess.Popen[str]"]


class JobRow:
    """Writes the row of a job as DBOS would, or changes the one there is."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._table = (
            "workflow_status" if engine.dialect.name == "sqlite" else ("dbos.workflow_status")
        )

    def __call__(
        self,
        job_id: str,
        status: str,
        executor_id: str | None = None,
        owner_xid: str | None = None,
    ) -> None:
        values = {
            "id": job_id,
            "status": status,
            "executor": executor_id,
            "owner": owner_xid or executor_id,
        }
        update = (
            f"UPDATE {self._table} "
            "SET status = :status, executor_id = :executor, owner_xid = :owner"
        )
        with self._engine.begin() as connection:
            changed = connection.execute(sa.text(f"{update} WHERE workflow_uuid = :id"), values)
            if changed.rowcount == 0:
                columns = (
                    "workflow_uuid, status, executor_id, owner_xid, name, created_at, updated_at, "
                    "priority"
                )
                connection.execute(
                    sa.text(
                        f"INSERT INTO {self._table} ({columns}) "
                        "VALUES (:id, :status, :executor, :owner, 'compress', 1, 1, 0)"
                    ),
                    values,
                )


@pytest.fixture
def set_job(database_url: str) -> Iterator[JobRow]:
    """Give a job, or a new one, a status: ``set_job(job_id, status, executor_id, owner_xid)``.

    The token of the execution, ``owner_xid``, is by default the executor's id.
    """
    engine = open_engine(database_url)
    yield JobRow(engine)
    engine.dispose()


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start ``python -c code args...`` in the repository; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *args: object) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def files_below() -> Callable[[Path], set[str]]:
    """All files and folders below a folder, lock files left out, as relative paths."""

    def listing(root: Path) -> set[str]:
        found = {str(path.relative_to(root)) for path in root.rglob("*") if path.name != ".lock"}
        return found

    return listing


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., Path]:
    """Write what a job stages for publication: ``stage(artifact_bytes, **report_members)``."""

    def write(artifact: bytes = b"bits", **report: object) -> Path:
        folder = tmp_path / "staged"
        folder.mkdir(exist_ok=True)
        (folder / "artifact.safetensors").write_bytes(artifact)
        (folder / "report.json").write_text(json.dumps({"schema": 1, **report}))
        (folder / "predictions.json").write_text('{"split": "test", "images": []}')
        return folder

    return write


class Build:
    """Writes archives into a folder and returns their paths."""

    png = b"\x89PNG\r\n\x1a\n"
    jpeg = b"\xff\xd8\xff\xe0"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def two_classes(self, *prefixes: str) -> dict[str, bytes]:
        """Three images of two classes, once below each prefix."""
        below = {"cat/1.png": self.png + b"1", "cat/2.png": self.png, "dog/1.jpg": self.jpeg}
        return {prefix + name: data for prefix in prefixes or ("",) for name, data in below.items()}

    def raw(self, data: bytes) -> Path:
        self._count += 1
        path = self._folder / f"archive-{self._count}"
        path.write_bytes(data)
        return path

    def tar(self, files: Mapping[str, bytes], **options: int) -> Path:
        """A plain tar of ``files``; a name that ends in / is a folder."""
        return self.tar_of([(self._tar_info(*item), item[1]) for item in files.items()], **options)

    def tar_with(self, info: tarfile.TarInfo, data: bytes = b"") -> Path:
        """A sound tar of two classes with one more member, exactly as ``info`` says."""
        sound = [(self._tar_info(*item), item[1]) for item in self.two_classes().items()]
        return self.tar_of([*sound, (info, data)])

    def tar_of(self, members: list[tuple[tarfile.TarInfo, bytes]], **options: int) -> Path:
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w", **options) as archive:  # type: ignore[call-overload]
            for info, data in members:
                archive.addfile(info, io.BytesIO(data) if data else None)
        return self.raw(target.getvalue())

    def zip(self, files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
        """A zip of ``files``; a name that ends in / is a folder."""
        return self.zip_of(
            [(zipfile.ZipInfo(name), data) for name, data in files.items()], compression
        )

    def zip_of(
        self, members: list[tuple[zipfile.ZipInfo, bytes]], compression: int = zipfile.ZIP_DEFLATED
    ) -> Path:
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as archive:
            for info, data in members:
                archive.writestr(info, data, compression)
        return self.raw(target.getvalue())

    def _tar_info(self, name: str, data: bytes) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        if name.endswith("/"):
            info.type = tarfile.DIRTYPE
        return info


@pytest.fixture
def build(tmp_path: Path) -> Build:
    folder = tmp_path / "built"
    folder.mkdir()
    return Build(folder)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the shared CIFAR-10 archive; the test is skipped where there is none."""
    folder = Path(os.environ.get("BITPRESS_SHARED", REPOSITORY.parent / "shared")) / "data"
    if not (folder / "cifar10-jpeg.tar.xz").is_file():
        pytest.skip("needs cifar10-jpeg.tar.xz in the shared data (BITPRESS_SHARED)")
    return folder

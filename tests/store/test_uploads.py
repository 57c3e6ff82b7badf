import errno
import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from store.errors import NotFound, StorageExhausted, TooLarge
from store.uploads import UploadStore, UploadWriter

Listing = Callable[[Path], set[str]]
Spawn = Callable[..., "subprocess.Popen[str]"]
EMPTY = {"sha256", "tmp"}


@pytest.fixture
def store(tmp_path: Path) -> UploadStore:
    return UploadStore(tmp_path, max_bytes=100)


def test_a_committed_upload_is_found_by_its_digest(store: UploadStore, tmp_path: Path) -> None:
    with store.receive() as writer:
        writer.write(b"hello ")
        writer.write(b"world")
        upload = writer.commit()
    hexdigest = hashlib.sha256(b"hello world").hexdigest()
    assert upload.digest == "sha256:" + hexdigest
    assert upload.bytes == 11
    assert store.resolve(upload.digest) == upload.path == tmp_path / "sha256" / hexdigest
    assert upload.path.read_bytes() == b"hello world"


def test_equal_uploads_are_kept_once(
    store: UploadStore, tmp_path: Path, files_below: Listing
) -> None:
    for _ in range(2):
        with store.receive() as writer:
            writer.write(b"same")
            upload = writer.commit()
    assert files_below(tmp_path) == EMPTY | {"sha256/" + upload.path.name}


def test_an_uncommitted_upload_leaves_nothing(
    store: UploadStore, tmp_path: Path, files_below: Listing
) -> None:
    with store.receive() as writer:
        writer.write(b"changed my mind")
        upload = writer.finish()
        assert upload.path.read_bytes() == b"changed my mind"
    assert files_below(tmp_path) == EMPTY
    with pytest.raises(NotFound):
        store.resolve(upload.digest)


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_an_interrupted_upload_leaves_nothing(
    store: UploadStore,
    tmp_path: Path,
    files_below: Listing,
    interruption: type[BaseException],
) -> None:
    with pytest.raises(interruption), store.receive() as writer:
        writer.write(b"half of")
        raise interruption
    assert files_below(tmp_path) == EMPTY


def test_the_limit_is_reached_but_not_passed(
    store: UploadStore, tmp_path: Path, files_below: Listing
) -> None:
    with store.receive() as writer:
        writer.write(bytes(100))
        assert writer.finish().bytes == 100
        with pytest.raises(TooLarge) as caught:
            writer.write(b"!")
    assert caught.value.field == "checkpoint"
    assert caught.value.remedy
    assert files_below(tmp_path) == EMPTY


def test_one_upload_may_have_a_limit_and_a_field_of_its_own(store: UploadStore) -> None:
    with store.receive(max_bytes=3, field="archive") as writer, pytest.raises(TooLarge) as caught:
        writer.write(b"four")
    assert caught.value.field == "archive"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_leaves_nothing(
    store: UploadStore,
    tmp_path: Path,
    files_below: Listing,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code), "/secret/path")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageExhausted) as caught, store.receive() as writer:
        writer.write(b"data")
        writer.commit()
    assert "/secret" not in str(caught.value.problem())
    assert files_below(tmp_path) == EMPTY


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "sha256:",
        "sha256:../../etc/passwd",
        "md5:" + "0" * 32,
        "sha256:" + "0" * 64,
        "sha256:" + "0" * 64 + "\n",
        "sha256:" + "F" * 64,
    ],
)
def test_an_unknown_digest_is_not_found(store: UploadStore, digest: str) -> None:
    with pytest.raises(NotFound) as caught:
        store.resolve(digest)
    assert caught.value.field == "spec.checkpoint"


UPLOADER = """
import sys
from pathlib import Path
from store.uploads import UploadStore
with UploadStore(Path(sys.argv[1]), 100).receive() as writer:
    writer.write(b"half")
    print("half", flush=True)
    sys.stdin.readline()
    print(writer.commit().digest, flush=True)
"""


def test_a_discarded_upload_is_gone_and_may_be_sent_again(store: UploadStore) -> None:
    for _ in range(2):
        with store.receive() as writer:
            writer.write(b"no checkpoint")
            upload = writer.commit()
        store.discard(upload.digest)
        store.discard(upload.digest)
        assert not upload.path.exists()
        with pytest.raises(NotFound):
            store.resolve(upload.digest)


def test_a_withdrawn_upload_is_gone(
    store: UploadStore, tmp_path: Path, files_below: Listing
) -> None:
    with store.receive() as writer:
        writer.write(b"data")
        writer.commit()
        writer.withdraw()
        writer.withdraw()
    assert files_below(tmp_path) == EMPTY


def test_what_others_have_too_is_not_withdrawn(store: UploadStore) -> None:
    def send(writer: UploadWriter) -> Path:
        writer.write(b"same")
        return writer.commit().path

    with store.receive() as first, store.receive() as second, store.receive() as third:
        path = send(first)
        send(second)
        first.withdraw()
        assert path.exists()
        second.withdraw()
        assert path.exists()
        store.discard("sha256:" + send(third).name)
        third.withdraw()
        assert not path.exists()


def test_what_a_killed_process_left_is_swept_and_what_a_live_one_writes_is_not(
    tmp_path: Path, spawn: Spawn, files_below: Listing
) -> None:
    doomed, alive = spawn(UPLOADER, tmp_path), spawn(UPLOADER, tmp_path)
    for process in (doomed, alive):
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
    doomed.kill()
    doomed.wait()
    assert len([p for p in files_below(tmp_path) if p.endswith("/upload")]) == 2

    store = UploadStore(tmp_path, 100)
    assert len([p for p in files_below(tmp_path) if p.endswith("/upload")]) == 1
    output, _ = alive.communicate("go on\n")
    assert store.resolve(output.strip()).read_bytes() == b"half"
    assert files_below(tmp_path) == EMPTY | {"sha256/" + hashlib.sha256(b"half").hexdigest()}

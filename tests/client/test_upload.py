import hashlib
import os
import tarfile
import tracemalloc
from pathlib import Path

import httpx
import pytest

from client.errors import UnusableFile
from client.upload import CHUNK_BYTES, dataset_name, dataset_upload, file_upload


def image_folder(folder: Path) -> Path:
    for name in ("train/cat/1.png", "train/cat/2.png", "train/dog/1.png", "test/cat/1.png"):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode() * 100)
    return folder


def test_a_file_is_sent_as_it_is(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5_000
    (tmp_path / "net.pth").write_bytes(content)
    upload = file_upload(tmp_path / "net.pth")
    assert (upload.filename, upload.length) == ("net.pth", len(content))
    assert upload.open().read() == content
    assert upload.digest() == "sha256:" + hashlib.sha256(content).hexdigest()


def test_progress_counts_the_bytes_up_to_the_end(tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(bytes(3 * CHUNK_BYTES + 1))
    seen: list[tuple[int, int]] = []
    file_upload(tmp_path / "net.pth").open(lambda *counts: seen.append(counts)).read()
    sent = [count for count, _ in seen]
    assert sent == sorted(sent)
    assert len(sent) >= 4
    assert seen[-1] == (3 * CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 1)


def test_an_upload_takes_constant_memory_and_knows_its_length(tmp_path: Path) -> None:
    length = 64 << 20
    with (tmp_path / "large.pth").open("wb") as file:
        file.truncate(length)
    files = {"checkpoint": ("large.pth", file_upload(tmp_path / "large.pth").open())}
    request = httpx.Request("POST", "http://service/compress", files=files)
    assert length < int(request.headers["content-length"]) < length + 1000
    assert isinstance(request.stream, httpx.SyncByteStream)
    tracemalloc.start()
    sent = sum(len(chunk) for chunk in request.stream)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sent == int(request.headers["content-length"])
    assert peak < length / 16


def test_a_request_can_be_sent_anew(tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(b"weights")
    files = {"checkpoint": ("net.pth", file_upload(tmp_path / "net.pth").open())}
    request = httpx.Request("POST", "http://service/compress", files=files)
    assert isinstance(request.stream, httpx.SyncByteStream)
    assert b"".join(request.stream) == b"".join(request.stream)


@pytest.mark.parametrize("name", ["missing.pth", "folder", "empty.pth"])
def test_what_is_no_file_with_content_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.pth").touch()
    with pytest.raises(UnusableFile, match=name):
        file_upload(tmp_path / name)


@pytest.mark.parametrize("content", [b"shorter", b"this is longer than before"])
def test_a_file_that_changes_while_it_is_sent_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(b"at first so long")
    stream = file_upload(path).open()
    path.write_bytes(content)
    with pytest.raises(UnusableFile, match="changed while it was read"):
        stream.read()


def test_a_folder_becomes_a_tar_that_others_can_read(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "pets")
    upload = dataset_upload(folder)
    assert upload.filename == "pets.tar"
    (tmp_path / "sent.tar").write_bytes(upload.open().read())
    assert (tmp_path / "sent.tar").stat().st_size == upload.length
    with tarfile.open(tmp_path / "sent.tar") as tar:
        assert tar.getnames() == [
            "test/cat/1.png",
            "train/cat/1.png",
            "train/cat/2.png",
            "train/dog/1.png",
        ]
        for member in tar:
            extracted = tar.extractfile(member)
            assert extracted is not None
            assert extracted.read() == (folder / member.name).read_bytes()


def test_an_unchanged_folder_keeps_its_digest_wherever_and_whenever(tmp_path: Path) -> None:
    first = image_folder(tmp_path / "first")
    second = image_folder(tmp_path / "second")
    os.utime(second / "train/cat/1.png", (1, 1))
    (second / "train/cat/1.png").chmod(0o600)
    assert dataset_upload(first).digest() == dataset_upload(second).digest()
    (second / "train/cat/1.png").write_bytes(b"another image")
    assert dataset_upload(first).digest() != dataset_upload(second).digest()


def test_long_and_foreign_names_survive_the_tar(tmp_path: Path) -> None:
    name = "ä" * 100 + ".png"
    (tmp_path / "pets/train/größe").mkdir(parents=True)
    (tmp_path / "pets/train/größe" / name).write_bytes(b"image")
    (tmp_path / "sent.tar").write_bytes(dataset_upload(tmp_path / "pets").open().read())
    with tarfile.open(tmp_path / "sent.tar") as tar:
        assert tar.getnames() == [f"train/größe/{name}"]


def test_hidden_files_stay_and_links_are_followed(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "pets")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / ".cache").mkdir()
    (folder / ".cache/1.png").write_bytes(b"x")
    (folder / "train/dog/linked.png").symlink_to(folder / "train/cat/1.png")
    (tmp_path / "sent.tar").write_bytes(dataset_upload(folder).open().read())
    with tarfile.open(tmp_path / "sent.tar") as tar:
        assert not [name for name in tar.getnames() if "/." in name or name.startswith(".")]
        linked = tar.getmember("train/dog/linked.png")
        assert linked.isfile()
        assert linked.size == (folder / "train/cat/1.png").stat().st_size


def test_a_link_in_a_circle_is_refused(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "pets")
    (folder / "train/again").symlink_to(folder)
    with pytest.raises(UnusableFile, match="reached twice"):
        dataset_upload(folder)


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableFile, match="holds no files"):
        dataset_upload(tmp_path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("cifar10-jpeg.tar.xz", "cifar10-jpeg"),
        ("data/Pets.ZIP", "pets"),
        ("my photos (2).tgz", "my-photos-2-"),
        ("folder.v2", "folder.v2"),
        ("_x.tar", "x"),
        (".zip", "zip"),
        ("日本.zip", "dataset"),
        ("a" * 80 + ".tar.gz", "a" * 64),
    ],
)
def test_a_dataset_is_named_after_its_file(path: str, name: str) -> None:
    assert dataset_name(Path(path)) == name

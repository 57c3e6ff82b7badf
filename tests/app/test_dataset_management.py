"""Datasets from roots, looked at, listed page by page, and deleted."""

import io
import json
import os
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from app import contact_sheet
from store import dataset_roots
from store.dataset_container import StoredImages
from store.specs import CompressSpec

LABELS = ("cat", "dog", "owl")


def coloured(colour: tuple[int, int, int], height: int = 8, width: int = 8) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(target, "PNG")
    return target.getvalue()


COLOURS = {"cat": (250, 0, 0), "dog": (0, 250, 0), "owl": (0, 0, 250)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root: one colour for each class, one image larger than the others."""
    root = tmp_path_factory.mktemp("pictures")
    for label, colour in COLOURS.items():
        for split, count in (("train", 5), ("test", 2)):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                (root / split / label / f"{number}.png").write_bytes(coloured(colour))
    (root / "test/owl/1.png").write_bytes(coloured((1, 2, 3), 20, 30))
    return root


@pytest.fixture(scope="module")
def rooted(serve: Any, pictures: Path) -> Iterator[Any]:
    """A service with a root of that folder; empty again after each test."""
    return serve(dataset_roots=f"pictures={pictures}")


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    service = request.getfixturevalue("rooted")
    for dataset in service.http.get("/datasets?limit=1000").json()["datasets"]:
        assert service.http.delete(f"/datasets/{dataset['name']}").status_code in (204, 409)


def register(service: Any, name: str = "pets", root: str = "pictures") -> Any:
    return service.http.post("/datasets", json={"name": name, "root": root})


# Roots


def test_a_root_is_registered_in_place_and_once(rooted: Any, pictures: Path) -> None:
    answer = register(rooted)
    assert answer.status_code == 201
    dataset = answer.json()
    assert (dataset["source"], dataset["root"], dataset["archive_digest"]) == (
        "root",
        "pictures",
        None,
    )
    assert dataset["splits"] == {"train": 15, "test": 6}
    assert str(pictures) not in answer.text
    again = register(rooted)
    assert (again.status_code, again.json()) == (200, dataset)
    assert not any("images.bin" in name for name in rooted.files())


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "pets"}, "root"),
        ({"root": "pictures"}, "name"),
        ({"name": "pets", "root": "elsewhere"}, "root"),
        ({"name": "../up", "root": "pictures"}, "name"),
        ({"name": "pets", "root": "/etc"}, "root"),
        ({"name": "pets", "root": "../etc"}, "root"),
        ({"name": "pets", "root": 7}, "root"),
        ({"name": "pets", "root": "pictures", "path": "/etc"}, "path"),
        ([], None),
    ],
)
def test_a_bad_registration_names_its_field(rooted: Any, body: Any, field: str | None) -> None:
    answer = rooted.http.post("/datasets", json=body)
    assert answer.status_code == 422
    assert answer.json().get("field") == field
    assert answer.json()["remedy"]


def test_bodies_that_are_no_json_are_refused(rooted: Any) -> None:
    headers = {"Content-Type": "application/json"}
    broken = rooted.http.post("/datasets", content=b"{", headers=headers)
    assert (broken.status_code, broken.json()["type"]) == (
        400,
        "urn:bitpress:problem:malformed-body",
    )
    large = rooted.http.post("/datasets", content=b" " * 200_000, headers=headers)
    assert large.status_code == 413


def test_a_faulty_root_is_a_problem_without_the_servers_path(rooted: Any, pictures: Path) -> None:
    before = rooted.files()
    (pictures / "train/cat/bad.png").write_bytes(b"text")
    try:
        answer = register(rooted)
    finally:
        (pictures / "train/cat/bad.png").unlink()
    assert (answer.status_code, answer.json()["field"]) == (422, "root")
    assert "train/cat/bad.png" in answer.json()["detail"]
    assert str(pictures) not in answer.text
    assert rooted.files() == before


def test_indexing_ends_when_the_client_goes_away(
    rooted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rooted.files()
    begun, gone = threading.Event(), threading.Event()
    read = dataset_roots._index_file

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert gone.wait(30)
        return read(*arguments)

    monkeypatch.setattr(dataset_roots, "_index_file", slow)
    monkeypatch.setattr(dataset_roots, "_FILES_AT_ONCE", 1)
    body = json.dumps({"name": "pets", "root": "pictures"}).encode()
    with socket.create_connection(rooted.address) as connection:
        connection.sendall(
            b"POST /datasets HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        assert begun.wait(30)
    # The service learns of it while the first file is still being read.
    for _ in range(2000):
        if 'route="/datasets",status="499"' in rooted.http.get("/metrics").text:
            break
        gone.set()
    else:
        pytest.fail("the client's leave was never noticed")
    assert rooted.http.get("/datasets/pets").status_code == 404
    assert rooted.files() == before


# Looking


def test_a_dataset_shows_counts_and_sizes(rooted: Any) -> None:
    dataset = register(rooted).json()
    answer = rooted.http.get("/datasets/pets")
    assert answer.status_code == 200
    detail = answer.json()
    assert {key: detail.pop(key) for key in dataset} == dataset
    assert detail == {
        "counts": {"train": dict.fromkeys(LABELS, 5), "test": dict.fromkeys(LABELS, 2)},
        "image_sizes": {
            "sampled": 21,
            "smallest": {"height": 8, "width": 8},
            "median": {"height": 8, "width": 8},
            "largest": {"height": 20, "width": 30},
        },
    }


def test_of_images_that_nobody_can_read_no_size_is_told(rooted: Any, zipped: Any) -> None:
    files = {f"{label}/1.png": b"\x89PNG\r\n\x1a\n" for label in LABELS}
    rooted.http.post("/datasets", data={"name": "torn"}, files={"archive": zipped(files)})
    assert rooted.http.get("/datasets/torn").json()["image_sizes"] is None
    assert rooted.http.get("/datasets/torn/sheet").status_code == 200


@pytest.fixture
def zipped() -> Callable[[dict[str, bytes]], bytes]:
    def make(files: dict[str, bytes]) -> bytes:
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return target.getvalue()

    return make


@pytest.mark.parametrize("name", ["none", "UPPER", "a" * 65])
def test_what_is_not_there_is_not_found(rooted: Any, name: str) -> None:
    status = 404 if name == "none" else 422
    for path in (f"/datasets/{name}", f"/datasets/{name}/sheet"):
        answer = rooted.http.get(path)
        assert (answer.status_code, answer.json()["field"]) == (status, "name")
    assert rooted.http.delete(f"/datasets/{name}").status_code == status


def test_pages_are_by_name_and_go_on_behind_the_last(rooted: Any) -> None:
    for name in ("b", "d", "a", "c", "e"):
        register(rooted, name)
    seen, cursor = [], None
    while True:
        page = rooted.http.get(
            "/datasets", params={"limit": 2} | ({"cursor": cursor} if cursor else {})
        ).json()
        seen.append([dataset["name"] for dataset in page["datasets"]])
        cursor = page["next"]
        if cursor is None:
            break
        rooted.http.delete("/datasets/b")
    assert seen == [["a", "b"], ["c", "d"], ["e"]]
    for bad in ({"limit": 0}, {"limit": 1001}, {"cursor": "../x"}, {"cursor": ""}):
        assert rooted.http.get("/datasets", params=bad).status_code == 422


def test_what_was_found_in_the_images_is_kept_until_the_dataset_goes(
    rooted: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(rooted)
    file = pictures / "test/owl/0.png"
    file.rename(pictures / "away.txt")
    try:
        incomplete = rooted.http.get("/datasets/pets").json()
    finally:
        (pictures / "away.txt").rename(file)
    assert incomplete["image_sizes"]["sampled"] == 20
    first = rooted.http.get("/datasets/pets").json()
    assert first["image_sizes"]["sampled"] == 21
    monkeypatch.setattr("app.dataset_details._Sample", None)
    assert rooted.http.get("/datasets/pets").json() == first
    for damage in (b"", b"{}", b'{"counts": 3}'):
        (kept,) = rooted.settings.cache_dir.glob("*-details-*/details.json")
        kept.write_bytes(damage)
        monkeypatch.undo()
        assert rooted.http.get("/datasets/pets").json() == first
    rooted.http.delete("/datasets/pets")
    assert not any("details" in name for name in rooted.files())


def test_of_large_images_only_the_heads_are_read(
    rooted: Any, zipped: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def picture(form: str, **options: Any) -> bytes:
        target = io.BytesIO()
        Image.new("RGB", (40, 30), "red").save(target, form, **options)
        return target.getvalue()

    # What follows the head of a file does not matter; a long comment before it does.
    behind = [picture(form) + bytes(200_000) for form in ("JPEG", "PNG", "BMP", "GIF")]
    before = picture("JPEG", exif=b"Exif\0\0" + bytes(60_000), comment=b"x" * 60_000)
    pictures = list(zip(("jpg", "png", "bmp", "gif", "jpeg"), [*behind, before], strict=True))
    files = {f"{label}/1.{kind}": data for label in "ab" for kind, data in pictures}
    answer = rooted.http.post("/datasets", data={"name": "large"}, files={"archive": zipped(files)})
    assert answer.status_code == 201, answer.text
    whole: list[int] = []
    read = StoredImages.read
    monkeypatch.setattr(
        StoredImages, "read", lambda images, row: (whole.append(row), read(images, row))[1]
    )
    sizes = rooted.http.get("/datasets/large").json()["image_sizes"]
    assert sizes["sampled"] == 10
    assert sizes["smallest"] == sizes["largest"] == {"height": 30, "width": 40}
    assert len(whole) == 2


# The sheet


def tiles(content: bytes) -> Any:
    """The colours at the middle of the places of a sheet, row by row."""
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image)
    step = contact_sheet._TILE + contact_sheet._GAP
    rows = range(contact_sheet._GAP + contact_sheet._TILE // 2, pixels.shape[0], step)
    columns = range(contact_sheet._NAME_WIDTH + contact_sheet._TILE // 2, pixels.shape[1], step)
    return [[tuple(map(int, pixels[row, column])) for column in columns] for row in rows]


def test_a_sheet_shows_samples_of_each_class_in_their_order(rooted: Any) -> None:
    register(rooted)
    answer = rooted.http.get("/datasets/pets/sheet?samples=3")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert tiles(answer.content) == [[colour] * 3 for colour in COLOURS.values()]
    fewer = rooted.http.get("/datasets/pets/sheet?samples=12&classes=2")
    white = (255, 255, 255)
    assert tiles(fewer.content) == [
        [colour] * 5 + [white] * 7 for colour in list(COLOURS.values())[:2]
    ]
    # The names stand to the left of their images.
    with Image.open(io.BytesIO(answer.content)) as image:
        names = np.asarray(image.convert("L"))[:, : contact_sheet._NAME_WIDTH]
    assert all((names[top : top + 64] < 128).any() for top in (4, 72, 140))


def test_a_sheet_is_drawn_once_and_not_sent_again(
    rooted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(rooted)
    first = rooted.http.get("/datasets/pets/sheet")
    entries = [name for name in rooted.files() if "sheet" in name]
    assert any(name.endswith("sheet.png") for name in entries)
    monkeypatch.setattr(contact_sheet, "_Sheet", None)
    assert rooted.http.get("/datasets/pets/sheet").content == first.content
    tag = first.headers["etag"]
    for given in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        same = rooted.http.get("/datasets/pets/sheet", headers={"If-None-Match": given})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    other = rooted.http.get("/datasets/pets/sheet", headers={"If-None-Match": '"other"'})
    assert other.status_code == 200
    rooted.http.delete("/datasets/pets")
    assert not any("sheet" in name for name in rooted.files())


def test_an_image_that_is_gone_or_too_large_leaves_its_place_grey(
    rooted: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(rooted)
    file = pictures / "train/dog/0.png"
    kept = file.read_bytes(), file.stat()
    file.unlink()
    try:
        incomplete = rooted.http.get("/datasets/pets/sheet?samples=1")
        grey = tiles(incomplete.content)
    finally:
        file.write_bytes(kept[0])
        os.utime(file, ns=(kept[1].st_atime_ns, kept[1].st_mtime_ns))
    assert grey == [[COLOURS["cat"]], [contact_sheet._EMPTY], [COLOURS["owl"]]]
    assert "etag" not in incomplete.headers
    assert incomplete.headers["cache-control"] == "no-store"
    # It was not kept, so the image is back as soon as its file is.
    whole = rooted.http.get("/datasets/pets/sheet?samples=1").content
    assert tiles(whole) == [[colour] for colour in COLOURS.values()]
    monkeypatch.setattr(contact_sheet, "_MOST_PIXELS", 64 + 63)
    small = tiles(rooted.http.get("/datasets/pets/sheet?samples=1&classes=3").content)
    assert small == tiles(whole)  # from the cache
    limited = tiles(rooted.http.get("/datasets/pets/sheet?samples=1&classes=2").content)
    assert limited == [[COLOURS["cat"]], [contact_sheet._EMPTY]]


def test_a_jpeg_counts_with_the_pixels_that_it_has(
    rooted: Any, zipped: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small it is drawn, a progressive one is held whole."""
    target = io.BytesIO()
    Image.new("RGB", (600, 500), "red").save(target, "JPEG", progressive=True)
    files = {"a/1.jpg": target.getvalue(), "b/1.png": coloured((0, 0, 250))}
    rooted.http.post("/datasets", data={"name": "big"}, files={"archive": zipped(files)})
    monkeypatch.setattr(contact_sheet, "_MOST_IMAGE_PIXELS", 299_999)
    sheet = rooted.http.get("/datasets/big/sheet?samples=1&classes=1")
    assert tiles(sheet.content) == [[contact_sheet._EMPTY]]
    monkeypatch.setattr(contact_sheet, "_MOST_IMAGE_PIXELS", 300_000)
    monkeypatch.setattr(contact_sheet, "_MOST_PIXELS", 300_063)
    ((large,), (small,)) = tiles(rooted.http.get("/datasets/big/sheet?samples=1").content)
    assert large[0] > 240
    assert small == contact_sheet._EMPTY


@pytest.mark.parametrize(
    "query", ["classes=0", "classes=41", "samples=0", "samples=13", "samples=x"]
)
def test_a_sheet_is_bounded(rooted: Any, query: str) -> None:
    register(rooted)
    assert rooted.http.get(f"/datasets/pets/sheet?{query}").status_code == 422


# Deleting


def test_a_deleted_dataset_is_gone(rooted: Any, pictures: Path) -> None:
    before = rooted.files()
    register(rooted)
    answer = rooted.http.delete("/datasets/pets")
    assert (answer.status_code, answer.content) == (204, b"")
    assert rooted.http.delete("/datasets/pets").status_code == 404
    assert [name for name in rooted.files() if not name.startswith("cache")] == [
        name for name in before if not name.startswith("cache")
    ]
    assert (pictures / "train/cat/0.png").exists()


def test_a_dataset_is_not_deleted_while_a_job_waits_for_it(rooted: Any) -> None:
    register(rooted)
    jobs = rooted.app.state.services.jobs
    job = jobs.submit(CompressSpec(name="m", architecture="vgg9", dataset="pets"))
    answer = rooted.http.delete("/datasets/pets")
    assert answer.status_code == 409
    assert job.id in answer.json()["detail"]
    assert answer.json()["field"] == "name"
    assert rooted.http.get("/datasets/pets").status_code == 200
    jobs.cancel(job.id)
    assert rooted.http.delete("/datasets/pets").status_code == 204


def test_too_many_at_once_are_told_to_come_back(
    rooted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooted.app.state.services.ingestion, "_most_waiting", 0)
    answer = register(rooted)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    # Told at the head of the request: not a byte of the archive was awaited.
    with socket.create_connection(rooted.address, timeout=30) as connection:
        connection.sendall(
            b"POST /datasets HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 429 ")


# What waits is in nobody's way


def test_a_sheet_that_is_kept_waits_for_no_other(
    rooted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(rooted)
    kept = rooted.http.get("/datasets/pets/sheet")
    detail = rooted.http.get("/datasets/pets")
    free, begun = threading.Event(), threading.Semaphore(0)
    draw = contact_sheet._Sheet.draw

    def held(sheet: Any) -> bytes:
        begun.release()
        assert free.wait(60)
        return draw(sheet)

    monkeypatch.setattr(contact_sheet._Sheet, "draw", held)
    drawing = rooted.app.state.services.drawing
    monkeypatch.setattr(drawing, "_most_waiting", 1)
    answers: list[int] = []

    def ask(samples: int) -> None:
        url = f"{rooted.http.base_url}/datasets/pets/sheet?samples={samples}"
        answers.append(httpx.get(url, timeout=60, trust_env=False).status_code)

    threads = [threading.Thread(target=ask, args=(samples,)) for samples in (1, 2, 3)]
    try:
        for thread in threads:
            thread.start()
        assert begun.acquire(timeout=30)
        assert begun.acquire(timeout=30)
        # Two are being drawn and one waits: what is kept is there at once, and a fifth is refused.
        while drawing._limiter.statistics().tasks_waiting < 1:
            assert rooted.http.get("/datasets/pets/sheet").content == kept.content
        assert rooted.http.get("/datasets/pets").json() == detail.json()
        refused = rooted.http.get("/datasets/pets/sheet?samples=4")
        assert refused.status_code == 429
        assert "looked into" in refused.json()["detail"]
    finally:
        free.set()
        for thread in threads:
            thread.join(60)
    assert answers == [200, 200, 200]


# What is damaged


def test_a_damaged_dataset_is_told_by_its_name_and_can_be_deleted(rooted: Any) -> None:
    register(rooted)
    register(rooted, "sound")
    record = rooted.settings.datasets_dir / "pets/dataset.json"
    record.write_bytes(record.read_bytes()[:-9])
    assert [d["name"] for d in rooted.http.get("/datasets").json()["datasets"]] == ["sound"]
    for path in ("/datasets/pets", "/datasets/pets/sheet"):
        answer = rooted.http.get(path)
        assert (answer.status_code, answer.json()["field"]) == (503, "name")
        assert "damaged" in answer.json()["detail"]
    again = register(rooted)
    assert (again.status_code, again.json()["field"]) == (503, "name")
    assert "bitpress_datasets 1.0" in rooted.http.get("/metrics").text
    assert rooted.http.delete("/datasets/pets").status_code == 204
    assert register(rooted).status_code == 201


def test_a_damaged_index_is_told_by_its_name(rooted: Any) -> None:
    register(rooted)
    index = rooted.settings.datasets_dir / "pets/index.npz"
    index.write_bytes(index.read_bytes()[:-9])
    answer = rooted.http.get("/datasets/pets")
    assert (answer.status_code, answer.json()["field"]) == (503, "name")
    assert rooted.http.delete("/datasets/pets").status_code == 204

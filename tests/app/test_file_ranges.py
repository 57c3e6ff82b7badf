"""What a Range header asks for, and a file that is sent while it is deleted."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import UnsatisfiableRange
from app.file_ranges import FileAnswer, byte_range, names_tag


@given(st.integers(0, 50), st.integers(0, 60), st.integers(0, 60))
def test_a_range_is_what_python_slices_too(size: int, first: int, last: int) -> None:
    data = bytes(range(size))
    asked = f"bytes={first}-{last}"
    try:
        part = byte_range(asked, size)
    except UnsatisfiableRange as error:
        assert data[first : last + 1] == b""
        assert error.size == size
    else:
        if part is None:
            assert last < first
        else:
            assert bytes(data[offset] for offset in part) == data[first : last + 1] != b""


@given(st.integers(0, 50), st.integers(0, 60))
def test_a_suffix_is_what_python_slices_too(size: int, count: int) -> None:
    data = bytes(range(size))
    try:
        part = byte_range(f"bytes=-{count}", size)
    except UnsatisfiableRange:
        assert count == 0 or size == 0
    else:
        assert part is not None
        assert bytes(data[offset] for offset in part) == data[-count:]


@given(st.text())
def test_no_header_is_too_strange(header: str) -> None:
    try:
        part = byte_range(header, 10)
    except UnsatisfiableRange:
        return
    assert part is None or 0 <= part.start < part.stop <= 10


@pytest.mark.parametrize(
    ("header", "named"),
    [(None, False), ("", False), ('"a"', True), ('W/"a"', True), ('"b", "a"', True), ("*", True)],
)
def test_tags_are_compared_weakly(header: str | None, named: bool) -> None:
    assert names_tag(header, '"a"') is named


async def receive() -> dict[str, Any]:
    """The client stays connected and says no more."""
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize("part", [None, range(100_000, 700_000)])
def test_a_file_deleted_while_it_is_sent_arrives_whole(tmp_path: Path, part: range | None) -> None:
    path = tmp_path / "file"
    content = bytes(range(256)) * 4096
    path.write_bytes(content)
    file = path.open("rb")
    answer = FileAnswer(file, len(content), part, media_type="x/y", headers={"ETag": '"a"'})
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        path.unlink(missing_ok=True)
        sent.append(message)

    asyncio.run(answer({"type": "http"}, receive, send))
    assert b"".join(message.get("body", b"") for message in sent) == (
        content if part is None else content[part.start : part.stop]
    )
    assert len(sent) > 3
    assert file.closed


def test_the_file_is_closed_when_the_client_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2**20))
    file = path.open("rb")
    answer = FileAnswer(file, 2**20, None, media_type="x/y", headers={})
    begun = asyncio.Event()

    async def leave() -> dict[str, Any]:
        await begun.wait()
        return {"type": "http.disconnect"}

    async def never_sent(message: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def test() -> None:
        async with asyncio.timeout(30):
            await answer({"type": "http"}, leave, never_sent)

    asyncio.run(test())
    assert file.closed

import bz2
import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from store.archive_members import DatasetLimits, shown
from store.archives import members
from store.errors import InvalidDataset, TooLarge

LIMITS = DatasetLimits(
    max_unpacked_bytes=2_000_000,
    max_ratio=50,
    ratio_free_bytes=200_000,
    max_members=50,
    max_member_bytes=300_000,
)


def read(path: Path, limits: DatasetLimits = LIMITS) -> dict[str, bytes | None]:
    return {
        "/".join(member.parts): None if member.is_folder else member.read()
        for member in members(path, limits)
    }


def refusal(path: Path, limits: DatasetLimits = LIMITS) -> InvalidDataset:
    with pytest.raises(InvalidDataset) as caught:
        read(path, limits)
    assert caught.value.field == "archive"
    assert caught.value.remedy
    assert str(path.parent) not in caught.value.detail
    return caught.value


def excess(path: Path, limits: DatasetLimits = LIMITS) -> TooLarge:
    with pytest.raises(TooLarge) as caught:
        read(path, limits)
    assert caught.value.field == "archive"
    assert caught.value.remedy
    return caught.value


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.xz": lzma.compress,
    "tar.bz2": bz2.compress,
}


# Honest archives


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_archives_give_what_was_put_in(build: Any, compression: str, format: int) -> None:
    long = "deep/" * 25 + "a long name of a file, which no plain header can hold as it is.png"
    files = {"top/": b"", "top/a.bin": b"a" * 512, "top/b": b"b" * 700, "c": b""}
    if format != tarfile.USTAR_FORMAT:
        files |= {long: b"long", "ünïcode/猫.png": b"cat"}
    plain = build.tar(files, format=format).read_bytes()
    expected = {name.rstrip("/"): data for name, data in files.items()} | {"top": None}
    assert read(build.raw(COMPRESSIONS[compression](plain))) == expected


def test_zip_archives_give_what_was_put_in(build: Any) -> None:
    files = {"top/": b"", "top/a.bin": b"a" * 1000, "ünïcode/猫.png": b"cat", "c": b""}
    expected = {name.rstrip("/"): data for name, data in files.items()} | {"top": None}
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert read(build.zip(files, compression)) == expected


def test_leading_dots_and_doubled_slashes_mean_nothing(build: Any) -> None:
    files = {"./": b"", "./a//b": b"1", "a/./c": b"2"}
    assert read(build.tar(files)) == read(build.zip(files)) == {"a/b": b"1", "a/c": b"2"}


def test_members_may_stay_unread(build: Any) -> None:
    for path in (build.tar(build.two_classes()), build.zip(build.two_classes())):
        assert len(list(members(path, LIMITS))) == 3


def test_xz_streams_in_a_row_with_padding_between_are_one_archive(build: Any) -> None:
    plain = build.tar(build.two_classes()).read_bytes()
    both = lzma.compress(plain[:700]) + bytes(8) + lzma.compress(plain[700:]) + bytes(4)
    assert read(build.raw(both)) == build.two_classes()


def test_a_pax_header_may_carry_any_other_record(build: Any) -> None:
    info = tarfile.TarInfo("a")
    info.pax_headers = {"comment": "x" * 3000, "SCHILY.xattr.user": "é", "mtime": "1.5"}
    assert read(build.tar_with(info))["a"] == b""


# Names and kinds


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../up.png",
        "cat/../../up.png",
        "cat/..",
        "C:/windows.png",
        "c:windows.png",
        "cat\\1.png",
        "..\\up.png",
        "cat/new\nline.png",
        "cat/bell\x07.png",
        "cat/" + "a" * 256,
        "/".join(["a" * 100] * 11),
    ],
)
def test_unsafe_names_are_refused_by_name(build: Any, name: str) -> None:
    for path in (build.tar({name: b"x"}), build.zip({name: b"x"})):
        error = refusal(path)
        assert shown(name)[1:10] in error.detail or "characters" in error.detail


def test_a_name_that_is_not_utf_8_is_refused(build: Any) -> None:
    data = build.tar({"cat/NAME.png": b"x"}, format=tarfile.GNU_FORMAT).read_bytes()
    header = bytearray(data[:512].replace(b"NAME", b"\xff\xfe\xfd\xfc"))
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert "cannot be printed" in refusal(build.raw(bytes(header) + data[512:])).detail


def test_a_zip_name_that_hides_its_end_behind_a_zero_byte_is_refused(build: Any) -> None:
    data = build.zip({"cat/1.pngX.exe": b"x"}).read_bytes().replace(b"pngX", b"png\0")
    refusal(build.raw(data))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.FIFOTYPE, "pipe"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
        (b"M", "unknown kind"),
    ],
)
def test_tar_members_that_are_no_plain_files_are_refused(
    build: Any, kind: bytes, words: str
) -> None:
    info = tarfile.TarInfo("dog/link.png")
    info.type = kind
    info.linkname = "/etc/passwd"
    error = refusal(build.tar_with(info))
    assert words in error.detail
    assert "dog/link.png" in error.detail


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_zip_members_that_are_no_plain_files_are_refused(build: Any, kind: int) -> None:
    info = zipfile.ZipInfo("dog/link.png")
    info.external_attr = (kind | 0o777) << 16
    assert "dog/link.png" in refusal(build.zip_of([(info, b"/etc/passwd")])).detail


def test_a_sparse_file_in_pax_form_is_refused(build: Any) -> None:
    info = tarfile.TarInfo("a")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": "1000000000000"}
    assert "sparse" in refusal(build.tar_with(info)).detail


def test_a_file_without_a_name_is_refused(build: Any) -> None:
    refusal(build.tar({"./.": b"x"}))


# Damage


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_tar_truncated_anywhere_is_refused(build: Any, compression: str) -> None:
    data = build.tar(build.two_classes()).read_bytes()
    # The end of the last member: what follows are the blocks of zeros that say that this is all.
    data = COMPRESSIONS[compression](data[: 3 * 1024 + 1024])
    assert read(build.raw(data)) == build.two_classes()
    if compression == "tar":
        data = data[: 3 * 1024]
    for length in {1, 5, 20, 100, len(data) // 3, len(data) // 2, len(data) - 4, len(data) - 1}:
        refusal(build.raw(data[:length]))
    if compression == "tar":
        assert "truncated" in refusal(build.raw(data)).detail


def test_a_zip_truncated_anywhere_is_refused(build: Any) -> None:
    data = build.zip(build.two_classes()).read_bytes()
    for length in range(1, len(data), 7):
        refusal(build.raw(data[:length]))


@pytest.mark.parametrize("compression", ["tar.gz", "tar.xz", "tar.bz2"])
def test_a_flipped_bit_in_a_compressed_tar_is_found(build: Any, compression: str) -> None:
    noise = bytes(range(256)) * 40
    sound = COMPRESSIONS[compression](build.tar({"cat/1.png": noise}).read_bytes())
    data = bytearray(sound)
    data[len(data) // 2] ^= 0x10
    refusal(build.raw(bytes(data)))


def test_a_damaged_header_in_the_middle_is_no_end(build: Any) -> None:
    data = bytearray(build.tar(build.two_classes()).read_bytes())
    data[1024] ^= 0xFF
    assert "headers" in refusal(build.raw(bytes(data))).detail


def test_a_flipped_bit_in_a_zip_member_is_found_and_named(build: Any) -> None:
    data = build.zip({"cat/1.png": b"A" * 100}, zipfile.ZIP_STORED).read_bytes()
    assert "cat/1.png" in refusal(build.raw(data.replace(b"AAAA", b"AABA", 1))).detail


def test_a_zip_whose_members_lie_before_its_beginning_is_damaged(build: Any) -> None:
    data = build.zip({"cat/1.png": b"A" * 100, "dog/1.png": b"B"}, zipfile.ZIP_STORED).read_bytes()
    refusal(build.raw(data.replace(b"A" * 100, b"")))


@pytest.mark.parametrize("make", ["tar", "zip", "tar.gz", "tar.xz"])
def test_random_damage_is_refused_or_harmless(build: Any, make: str) -> None:
    files = {f"c{n % 3}/{n}.png": bytes([n]) * 90 * n for n in range(8)} | {"d/" * 90 + "n": b"x"}
    sound = build.zip(files).read_bytes() if make == "zip" else build.tar(files).read_bytes()
    sound = COMPRESSIONS.get(make, bytes)(sound)
    random = Random(0)
    refused = 0
    for _ in range(150):
        data = bytearray(sound)
        for _ in range(random.choice([1, 2, 8])):
            place = random.randrange(len(data))
            damage = random.choice([b"", b"\0", b"\xff", random.randbytes(1), random.randbytes(20)])
            data[place : place + random.choice([0, 1, 30])] = damage
        try:
            read(build.raw(bytes(data)))
        except (InvalidDataset, TooLarge):
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"not an archive at all" * 100,
        b"PK\x03\x04" + bytes(100),
        b"Rar!\x1a\x07" * 200,
        b"\x1f\x8b" + bytes(50),
        b"\xfd7zXZ\x00" + bytes(50),
        b"BZh9" + bytes(50),
        gzip.compress(b"text " * 500, mtime=0),  # its bytes name the test, to every process alike
        b"\x89PNG\r\n\x1a\n" + bytes(range(200)) * 5,
    ],
)
def test_what_is_no_archive_is_refused(build: Any, data: bytes) -> None:
    refusal(build.raw(data))


def test_an_encrypted_zip_is_refused_by_name(build: Any) -> None:
    data = bytearray(build.zip({"cat/1.png": b"secret"}).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    error = refusal(build.raw(bytes(data)))
    assert "cat/1.png" in error.detail and "encrypted" in error.detail
    assert "password" in (error.remedy or "")


def test_a_zip_with_an_unusual_compression_is_refused_by_name(build: Any) -> None:
    error = refusal(build.zip({"cat/1.png": b"x" * 99}, zipfile.ZIP_LZMA))
    assert "cat/1.png" in error.detail


@pytest.mark.parametrize(
    "content",
    [
        b"path=x\n",
        b"5 a\n",
        b"99 path=x\n",
        b"0 path=x\n",
        b"x path=x\n",
        b"9 path=x ",
        b"11 size=-1\n",
        b"29 size=99999999999999999999\n",
    ],
)
def test_a_damaged_pax_header_is_refused(build: Any, content: bytes) -> None:
    info = tarfile.TarInfo("PaxHeader")
    info.type = tarfile.XHDTYPE
    info.size = len(content)
    refusal(build.tar_of([(info, content), (tarfile.TarInfo("a"), b"")]))


def test_a_negative_size_is_refused(build: Any) -> None:
    data = bytearray(build.tar({"cat/1.png": b""}).read_bytes())
    data[124:136] = b"\xff" * 12
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    assert "negative" in refusal(build.raw(bytes(data))).detail


# Bombs and lies


@pytest.mark.parametrize("compression", ["tar.gz", "tar.xz", "tar.bz2"])
def test_a_compressed_bomb_stops_at_the_ratio(build: Any, compression: str) -> None:
    files = {f"cat/{n}.png": bytes(100_000) for n in range(10)}
    bomb = build.raw(COMPRESSIONS[compression](build.tar(files).read_bytes()))
    assert "50 times" in excess(bomb).detail


def test_a_bomb_behind_the_end_of_the_archive_stops_too(build: Any) -> None:
    data = build.tar(build.two_classes()).read_bytes() + bytes(20_000_000)
    excess(build.raw(gzip.compress(data)))


def test_a_zip_bomb_stops_at_the_ratio(build: Any) -> None:
    files = {f"cat/{n}.png": bytes(100_000) for n in range(10)}
    assert "50 times" in excess(build.zip(files)).detail


def test_the_total_is_limited_whatever_the_ratio(build: Any) -> None:
    files = {f"cat/{n}.png": bytes(range(250)) * 1000 for n in range(9)}
    for path in (build.tar(files), build.zip(files, zipfile.ZIP_STORED)):
        assert "2,000,000 bytes" in excess(path).detail


def test_a_member_over_the_limit_is_named(build: Any) -> None:
    files = {"cat/1.png": bytes(300_001)}
    for path in (build.tar(files), build.zip(files, zipfile.ZIP_STORED)):
        assert "cat/1.png" in excess(path).detail


def test_a_tar_that_declares_more_than_it_has_is_truncated(build: Any) -> None:
    data = bytearray(build.tar({"cat/1.png": b"short"}).read_bytes())
    data[124:136] = b"%011o\0" % 200_000
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    assert "truncated" in refusal(build.raw(bytes(data))).detail


@pytest.mark.parametrize("declared", [10, 250_000, 0])
def test_a_zip_that_lies_about_a_size_is_damaged(build: Any, declared: int) -> None:
    data = bytearray(build.zip({"cat/1.png": bytes(100_000)}).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(signature) + offset, declared)
    assert "cat/1.png" in refusal(build.raw(bytes(data))).detail


def test_zip_members_that_share_their_bytes_count_each_time(build: Any) -> None:
    data = build.zip({"cat/1.png": bytes(100_000)}).read_bytes()
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entries = data[start:end] * 40
    tail = bytearray(data[end:])
    struct.pack_into("<HHI", tail, 8, 40, 40, len(entries))
    overlapping = build.raw(data[:start] + entries + bytes(tail))
    with pytest.raises((TooLarge, InvalidDataset)):
        read(overlapping)


def test_the_number_of_members_is_limited(build: Any) -> None:
    fits = {f"cat/{n}.png": b"" for n in range(50)}
    for make in (build.tar, build.zip):
        assert len(read(make(fits))) == 50
        assert "50 entries" in excess(make(fits | {"cat/50.png": b""})).detail


def test_a_zip_directory_too_large_for_memory_is_not_read(build: Any) -> None:
    members_with_comments = []
    for n in range(20):
        info = zipfile.ZipInfo(f"cat/{n}.png")
        info.comment = b"c" * 60_000
        members_with_comments.append((info, b""))
    assert "entries" in excess(build.zip_of(members_with_comments)).detail


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_an_extended_header_of_many_megabytes_is_not_read(build: Any, kind: bytes) -> None:
    info = tarfile.TarInfo("header")
    info.type = kind
    info.size = 2_000_000
    path = build.tar_of([(info, b"x" * info.size)])
    assert "excessive" in refusal(path).detail


def test_extended_headers_without_end_are_refused(build: Any) -> None:
    info = tarfile.TarInfo("header")
    info.type = tarfile.XHDTYPE
    info.size = 9
    path = build.tar_of([(info, b"9 path=x\n")] * 30)
    assert "excessive" in refusal(path).detail


def test_xz_does_not_get_the_memory_it_asks_for(build: Any) -> None:
    data = bytearray(lzma.compress(build.tar(build.two_classes()).read_bytes()))
    # The first block's header follows the 12 bytes of the stream's: its size in units of 4 bytes
    # less one, flags, the filter's id and property size, the dictionary's size, ..., CRC-32.
    end = 12 + 4 * (data[12] + 1)
    data[12 + 4] = 40
    struct.pack_into("<I", data, end - 4, zlib.crc32(data[12 : end - 4]))
    with pytest.raises(lzma.LZMAError, match="Memory usage limit"):
        lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=2**28).decompress(bytes(data))
    assert "compression" in refusal(build.raw(bytes(data))).detail


COMPRESSORS = [gzip.compress, lzma.compress, bz2.compress]


@pytest.mark.parametrize("compress", COMPRESSORS)
def test_streams_without_content_are_not_read_without_end(
    build: Any, compress: Callable[[bytes], bytes]
) -> None:
    refused = refusal(build.raw(compress(b"") * 20_000))
    assert "compressed streams" in refused.detail


@pytest.mark.parametrize("compress", COMPRESSORS)
def test_an_archive_of_many_small_streams_is_read(
    build: Any, compress: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.tarballs._FREE_STREAMS", 2)
    data = build.tar(build.two_classes()).read_bytes()
    pieces = [data[start : start + 5000] for start in range(0, len(data), 5000)]
    packed = (b"\0" * 3).join(map(compress, pieces))
    assert read(build.raw(packed)) == read(build.tar(build.two_classes()))


@pytest.mark.parametrize("compress", COMPRESSORS)
def test_whoever_waits_may_leave_while_nothing_comes_out(
    build: Any, compress: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(Exception):
        pass

    monkeypatch.setattr("store.tarballs._FREE_STREAMS", 10**9)
    path = build.raw(compress(b"") * 20_000)
    pieces = path.stat().st_size // 2**16
    calls = 0

    def proceed() -> None:
        nonlocal calls
        calls += 1
        if calls == pieces:
            raise Gone

    with pytest.raises(Gone):
        list(members(path, LIMITS, proceed))

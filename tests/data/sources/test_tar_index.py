"""The index of a tar shard, against tarfile, webdataset, open_clip and GNU tar."""

import contextlib
import io
import os
import resource
import shutil
import subprocess
import tarfile
import time

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tar_cases
from tar_cases import index_of, open_clip_data, samples_of, tar_bytes
from webdataset.tariterators import base_plus_ext, tar_file_iterator

from jaxvl.data.records import DataError
from jaxvl.data.sources import tar_index
from jaxvl.paths import FileState

CASES = tar_cases.cases()
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def by_open_clip(content: bytes) -> list[tuple[str, dict[str, bytes]]]:
    """Samples as webdataset's tar reader and open_clip's grouping find them."""
    members = ({**member, "__url__": "x"} for member in tar_file_iterator(io.BytesIO(content)))
    found = []
    for sample in open_clip_data().group_by_keys_nothrow(members):
        found.append(
            (
                sample["__key__"],
                {suffix: data for suffix, data in sample.items() if not suffix.startswith("__")},
            )
        )
    return found


@pytest.mark.parametrize("format", FORMATS)
def test_samples_are_those_of_open_clip(format):
    members = [
        (f"{i:09d}.{suffix}", os.urandom(37 * i))
        for i in range(60)
        for suffix in ("jpg", "TXT", "seg.png", "json")
    ]
    content = tar_bytes(members, format=format)
    assert samples_of(content) == by_open_clip(content)
    assert len(samples_of(content)) == 60


@pytest.mark.parametrize("format", (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
@pytest.mark.parametrize(
    "name",
    [
        "d/" * 90 + "x.jpg",
        "n" * 300 + ".jpg",
        "grün/日本.jpg",
        "caf\udce9.jpg",
        "a.b/c.d.jpg",
        "./x.jpg",
    ],
)
def test_long_and_foreign_names(format, name):
    content = tar_bytes(
        [("a.jpg", b"first"), (name, b"second"), ("z.jpg", b"third")], format=format
    )
    found = samples_of(content)
    assert found == by_open_clip(content)
    assert found[1] == (base_plus_ext(name)[0], {base_plus_ext(name)[1]: b"second"})


def test_a_prefix_of_ustar_is_part_of_the_name():
    name = "d" * 100 + "/" + "x" * 80 + ".jpg"
    content = tar_bytes([(name, b"x")], format=tarfile.USTAR_FORMAT)
    assert samples_of(content) == [(name.removesuffix(".jpg"), {"jpg": b"x"})]


NAME = st.text("ab./_A", min_size=1, max_size=6).filter(
    lambda name: name.strip("./") and ".." not in name and not name.endswith("/")
)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
    st.lists(st.tuples(NAME, st.binary(max_size=1200)), max_size=12), st.sampled_from(FORMATS)
)
def test_every_member_is_where_tarfile_finds_it(members, format):
    content = tar_bytes(members, format=format)
    ours = {}
    for key, suffixes in samples_of(content):
        for suffix, data in suffixes.items():
            ours.setdefault((key, suffix), []).append(data)
    expected = {}
    for member in tarfile.open(fileobj=io.BytesIO(content)):
        key, suffix = base_plus_ext(member.name)
        last = member.name.rpartition("/")[2]
        if member.name.startswith("/") or key is None or not suffix or last.startswith("."):
            continue  # left out by a cause
        if not tar_index._is_metadata(member.name):
            expected.setdefault((key, suffix.lower()), []).append(
                content[member.offset_data : member.offset_data + member.size]
            )
    assert ours == expected


def test_members_that_are_not_adjacent_make_whole_samples():
    content = tar_bytes([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.txt", b"3"), ("b.txt", b"4")])
    assert samples_of(content) == [
        ("a", {"jpg": b"1", "txt": b"3"}),
        ("b", {"jpg": b"2", "txt": b"4"}),
    ]
    assert len(by_open_clip(content)) == 4  # halves


def test_a_suffix_that_repeats_begins_another_sample():
    content = tar_bytes(
        [("a.jpg", b"1"), ("a.txt", b"2"), ("a.jpg", b"3"), ("a.txt", b"4"), ("b.jpg", b"5")]
    )
    assert samples_of(content) == by_open_clip(content)
    assert [key for key, _ in samples_of(content)] == ["a", "a", "b"]


def test_a_dot_in_the_base_name_splits_as_webdataset_does():
    content = tar_bytes([("Photo 2.0 (clean).jpg", b"1"), ("Photo 2.0 (clean).txt", b"2")])
    assert (
        samples_of(content)
        == by_open_clip(content)
        == [("Photo 2", {"0 (clean).jpg": b"1", "0 (clean).txt": b"2"})]
    )


@pytest.mark.parametrize("name", CASES)
def test_odd_and_broken_tars(name):
    case = CASES[name]
    if case.error:
        with pytest.raises(DataError, match=f"x.tar: .*{case.error}"):
            index_of(case.content)
        return
    index = index_of(case.content)
    assert {cause: n for cause, (n, _) in index.left_out.items()} == case.causes
    assert {index.key(i): list(index.members(i)) for i in range(len(index))} == case.samples


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case.samples == tar_cases.BOTH]
)
def test_what_is_kept_of_an_odd_tar_is_what_was_written(name):
    assert dict(samples_of(CASES[name].content)) == tar_cases.TWO


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program")
@pytest.mark.parametrize("format", ("v7", "oldgnu", "gnu", "ustar", "posix"))
def test_tars_of_the_tar_program(tmp_path, format):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.jpg").write_bytes(b"picture")
    (folder / "deep" / "a.txt").write_text("text")
    (folder / "b.jpg").symlink_to("deep/a.jpg")
    os.link(folder / "deep" / "a.txt", folder / "z.txt")
    os.mkfifo(folder / "pipe.jpg")
    with open(folder / "hole.jpg", "wb") as file:
        file.truncate(2**20)
        file.seek(2**19)
        file.write(b"x")
    sparse = ["-S"] if format != "v7" and format != "ustar" else []
    command = [
        "tar",
        "--sort=name",
        f"--format={format}",
        *sparse,
        "-C",
        str(folder),
        "-cf",
        str(tmp_path / "x.tar"),
        ".",
    ]
    subprocess.run(
        command, capture_output=True
    )  # v7 cannot hold the fifo, which it says by its status
    content = (tmp_path / "x.tar").read_bytes()
    index = index_of(content)
    whole = {key: members for key, members in samples_of(content) if key == "./deep/a"}
    assert whole == {"./deep/a": {"jpg": b"picture", "txt": b"text"}}
    assert index.left_out["link"] == (2, "./b.jpg")
    assert ("sparse member" in index.left_out) == bool(sparse)
    assert set(index.left_out) <= {"link", "device", "sparse member"}


def test_about_fifty_bytes_a_sample():
    content = tar_bytes(
        [(f"{i:09d}.{suffix}", b"") for i in range(2000) for suffix in ("jpg", "json", "txt")]
    )
    assert len(index_of(content).to_bytes()) < 50 * 2000


def test_an_index_file_reads_back_equal():
    for case in CASES.values():
        if case.error:
            continue
        index = index_of(case.content)
        again = tar_index.read_index(index.to_bytes())
        assert (again.state, again.suffixes, again.left_out, again.digest) == (
            index.state,
            index.suffixes,
            index.left_out,
            index.digest,
        )
        assert [again.members(i) for i in range(len(again))] == [
            index.members(i) for i in range(len(index))
        ]
        assert list(again.all_keys()) == [index.key(i) for i in range(len(index))]


def test_which_samples_have_a_member():
    content = tar_bytes(
        [("a.jpg", b""), ("b.txt", b""), ("c.webp", b""), ("c.txt", b""), ("d.jpg", b"")]
    )
    index = index_of(content)
    np.testing.assert_array_equal(index.with_suffixes({"jpg", "webp"}), [True, False, True, True])
    np.testing.assert_array_equal(index.with_suffixes({"flac"}), [False] * 4)


def test_digest_is_of_the_content_alone():
    content = tar_bytes(tar_cases.PLAIN)
    read = lambda start, size: content[start : start + size]
    one, two = (
        tar_index.make_index("x", FileState(len(content), version), read) for version in ("1", "2")
    )
    assert one.digest == two.digest
    assert index_of(tar_bytes([*tar_cases.PLAIN, ("c.jpg", b"")])).digest != one.digest


def test_more_than_65536_suffixes():
    grouping = tar_index._Grouping()
    for i in range(70_000):
        grouping.add(f"a.{i}", 512 * (2 * i + 1), 1, None)
    index = grouping.index(FileState(2 * 70_000 * 512, "1"))
    again = tar_index.read_index(index.to_bytes())
    assert len(again) == 1 and again.members(0) == {
        str(i): (512 * (2 * i + 1), 1) for i in range(70_000)
    }


def test_numbers_are_known_without_a_read():
    cls = [b"7", b" -12\n", b"0", b"7.5", b"x", b"", b"9" * 18, b"9" * 19]
    index = index_of(tar_bytes([(f"{i}.cls", content) for i, content in enumerate(cls)]))
    none = tar_index.NO_NUMBER
    expected = [7, -12, 0, none, none, none, 10**18 - 1, none]
    for found in (index, tar_index.read_index(index.to_bytes())):
        np.testing.assert_array_equal(found.number, [expected])
        assert (
            found.numbers == ("cls",)
            and found.numbers_of("cls") is None
            and found.numbers_of("label") is None
        )
    whole = index_of(tar_bytes([("a.cls", b"1"), ("b.cls", b"2"), ("a.jpg", b""), ("a.cls", b"3")]))
    np.testing.assert_array_equal(whole.numbers_of("cls"), [1, 2, 3])


def test_members_beyond_4_gib():
    grouping = tar_index._Grouping()
    grouping.add("a.mp4", 512, 2**33, None)
    grouping.add("a.txt", 2**33 + 1024, 3, None)
    again = tar_index.read_index(grouping.index(FileState(2**33 + 4096, "1")).to_bytes())
    assert again.members(0) == {"mp4": (512, 2**33), "txt": (2**33 + 1024, 3)}


# --------------------------------------------------------------------------------------------------
# Any bytes


def most_memory() -> int:
    """Bytes that this process has had at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def scan_ends(content: bytes) -> None:
    """Indexing ends soon and in little memory, with an index whose members lie inside of the file,
    or a DataError."""
    before = most_memory()
    start = time.process_time()
    with contextlib.suppress(DataError):
        index = index_of(content)
        tar_index.read_index(index.to_bytes())
    assert time.process_time() - start < 5 and most_memory() - before < 2**28


def damaged(base: bytes, edits: list[tuple[int, bytes]]) -> bytes:
    content = bytearray(base)
    for at, piece in edits:
        at %= max(len(content), 1)
        content[at : at + len(piece)] = piece
    return bytes(content)


def with_sums(content: bytes) -> bytes:
    """Checksums of all blocks that look like headers made right, so that damage behind them is
    reached."""
    out = bytearray(content)
    for start in range(0, len(out) - 511, 512):
        if out[start + 257 : start + 262] == b"ustar":
            out[start + 148 : start + 156] = b" " * 8
            out[start + 148 : start + 156] = b"%06o\0 " % sum(out[start : start + 512])
    return bytes(out)


SEEDS = [case.content for case in CASES.values() if len(case.content) < 2**16]
EDITS = st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=24)), max_size=6)


def fuzz_scan(seed, edits, cut, sums):
    content = damaged(SEEDS[seed], edits)
    content = with_sums(content) if sums else content
    scan_ends(content[: len(content) - cut % (len(content) + 1)])


def fuzz_index(seed, edits, cut):
    content = damaged(SEEDS_OF_INDEXES[seed % len(SEEDS_OF_INDEXES)], edits)
    content = content[: len(content) - cut % (len(content) + 1)]
    before = most_memory()
    for check in (True, False):
        with contextlib.suppress(tar_index.BadIndex):
            tar_index.read_index(content, check)
    assert most_memory() - before < 2**28


def _indexes():
    for case in CASES.values():
        if not case.error:
            yield index_of(case.content).to_bytes()


SEEDS_OF_INDEXES = [content for content in _indexes() if len(content) < 2**16]
OF_SCAN = (st.integers(0, len(SEEDS) - 1), EDITS, st.integers(0, 3000), st.booleans())
OF_INDEX = (st.integers(0, 1000), EDITS, st.integers(0, 300))


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(*OF_SCAN)
def test_any_tar_is_indexed_or_refused(seed, edits, cut, sums):
    fuzz_scan(seed, edits, cut, sums)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(*OF_INDEX)
def test_any_index_file_is_read_or_refused(seed, edits, cut):
    fuzz_index(seed, edits, cut)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.binary(max_size=3000))
def test_any_bytes_are_refused(content):
    scan_ends(content)
    with pytest.raises(tar_index.BadIndex):
        tar_index.read_index(content)


@pytest.mark.slow
@hypothesis.settings(max_examples=10_000, deadline=None)
@hypothesis.given(*OF_SCAN)
def test_any_tar_is_indexed_or_refused_for_long(seed, edits, cut, sums):
    fuzz_scan(seed, edits, cut, sums)


@pytest.mark.slow
@hypothesis.settings(max_examples=10_000, deadline=None)
@hypothesis.given(*OF_INDEX)
def test_any_index_file_is_read_or_refused_for_long(seed, edits, cut):
    fuzz_index(seed, edits, cut)

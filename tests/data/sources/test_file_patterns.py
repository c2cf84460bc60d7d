"""Lists of shards, against braceexpand (webdataset's) and the shell's globs."""

import braceexpand
import hypothesis
import hypothesis.strategies as st
import pytest

from jaxvl.config import ConfigError
from jaxvl.data.sources.file_patterns import expand_braces, expand_files

PIECES = st.sampled_from(
    [
        "{0..3}",
        "{08..11}",
        "{a,b}",
        "{,x}",
        "{c..a}",
        "{0..10..5}",
        "{z}",
        "{}",
        "s3://b/",
        "-",
        ".tar",
        "{a{1..2},b}",
    ]
)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(st.lists(PIECES, max_size=4).map("".join))
def test_braces_are_braceexpands(pattern):
    assert expand_braces(pattern, "files") == list(braceexpand.braceexpand(pattern))


def test_several_sources_are_joined():
    files = expand_files("a/{00000..00002}.tar::gs://b/{x,y}.tar", "files")
    assert files == ["a/00000.tar", "a/00001.tar", "a/00002.tar", "gs://b/x.tar", "gs://b/y.tar"]
    assert expand_files(("a/{00000..00002}.tar", "gs://b/{x,y}.tar"), "files") == files


def test_globs_and_folders_are_sorted(tmp_path):
    for name in ("b.tar", "a.tar", "c.txt", "a.tar.jaxvl.idx", "d/e.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    both = [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]
    assert expand_files(str(tmp_path), "files") == both
    assert expand_files(f"{tmp_path}/", "files") == both
    assert expand_files(f"{tmp_path}/*.tar", "files") == both
    assert expand_files(f"{tmp_path}/**/*.tar", "files") == [*both, str(tmp_path / "d" / "e.tar")]
    assert expand_files(f"{tmp_path}/{{b,[a]}}.tar", "files") == both[::-1]


def test_a_file_is_taken_as_it_is_called(tmp_path):
    odd = tmp_path / "a{1,2}[x].tar"
    odd.write_bytes(b"")
    assert expand_files(str(odd), "files") == [str(odd)]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ("pipe:aws s3 cp s3://bucket/{000..003}.tar -", "write 's3://bucket/{000..003}.tar'"),
        ("pipe:cat x.tar", "only be read from its start"),
        ("", "holds an empty name"),
        ("a.tar::", "holds an empty name"),
        ((), "names no files"),
        ("{0..99999999999}.tar", "more than 1,000,000"),
        ("{0..999999}{0..9}.tar", "more than 1,000,000"),
        (("a.tar", "{a,b}.tar"), "'a.tar' is named twice"),
        ("/nowhere/*.tar", "no file matches"),
        ("https://example.org/*.tar", "a web server lists no files"),
    ],
)
def test_what_cannot_be_used_is_said(files, problem):
    with pytest.raises(ConfigError, match="^files: ") as caught:
        expand_files(files, "files")
    assert problem in str(caught.value)

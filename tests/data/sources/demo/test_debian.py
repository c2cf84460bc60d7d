import hashlib
import os
import pathlib

import fake_packages
import fake_stamps
import pytest

from jaxvl.data.records import DataError
from jaxvl.data.sources.demo import debian

CONTENT = {"a/b.txt": b"one\n", "a/ü.txt": b"zwei"}
PATH = "pool/main/x/x_1-1_all.deb"


@pytest.fixture
def deb(tmp_path):
    (tmp_path / "x_1-1_all.deb").write_bytes(
        fake_stamps.archive({"debian-binary": b"2.0", "data.tar.xz": fake_stamps.tar(CONTENT)})
    )
    return tmp_path / "x_1-1_all.deb"


@pytest.fixture
def no_apt(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


def fetch(deb, folder, **options):
    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    return debian.fetch("x", "1-1", PATH, options.pop("sha256", digest), folder, **options)


def test_a_package_is_unpacked(deb, tmp_path):
    debian.unpack(deb, tmp_path / "out")
    root = tmp_path / "out" / "usr/share/tuxpaint/stamps"
    assert {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.txt")} == CONTENT


@pytest.mark.parametrize("mode, suffix", [("w:gz", ".gz"), ("w", "")])
def test_other_compressions(tmp_path, mode, suffix):
    (tmp_path / "x.deb").write_bytes(
        fake_stamps.archive({"odd": b"abc", f"data.tar{suffix}/": fake_stamps.tar(CONTENT, mode)})
    )
    debian.unpack(tmp_path / "x.deb", tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*.txt"))) == 2


@pytest.mark.parametrize(
    "data, message",
    [
        (b"<html>no such file</html>", "is no Debian package"),
        (fake_stamps.archive({"debian-binary": b"2.0"}), "holds no data.tar"),
        (
            fake_stamps.archive({"data.tar.xz": fake_stamps.tar(CONTENT)[:100]}),
            "data.tar.xz cannot be unpacked",
        ),
        (fake_stamps.archive({"data.tar.xz": b"what is this"}), "data.tar.xz cannot be unpacked"),
    ],
)
def test_what_is_no_package(tmp_path, data, message):
    (tmp_path / "x.deb").write_bytes(data)
    with pytest.raises(DataError, match=message):
        debian.unpack(tmp_path / "x.deb", tmp_path / "out")


def test_a_file_a_url_and_a_mirror(deb, tmp_path, no_apt):
    assert fetch(deb, tmp_path / "1", source=str(deb)) == deb
    assert fetch(deb, tmp_path / "2", source=deb.as_uri()).read_bytes() == deb.read_bytes()
    mirror = tmp_path / "debian" / PATH
    mirror.parent.mkdir(parents=True)
    mirror.write_bytes(deb.read_bytes())
    assert (
        fetch(deb, tmp_path / "3", source=(tmp_path / "debian").as_uri() + "/").read_bytes()
        == deb.read_bytes()
    )


def test_another_content_is_refused(deb, tmp_path):
    with pytest.raises(
        DataError, match=r"x_1-1_all\.deb is not x 1-1: its SHA-256 is [0-9a-f]{64}, not 00"
    ):
        fetch(deb, tmp_path / "out", source=str(deb), sha256="00")


def test_apt_is_asked_first(deb, tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    fake_packages.client(folder, "")
    (folder / "npm").rename(folder / "apt-get")
    (folder / "apt-get").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncp {deb} .\n')
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    assert fetch(deb, tmp_path / "out") == tmp_path / "out" / deb.name
    assert (tmp_path / "arguments").read_text().split() == ["download", "x=1-1"]
    # apt that does not know the version: the mirror is asked, and what both said is told.
    (folder / "apt-get").write_text(
        "#!/bin/sh\necho 'E: Version 1-1 for x was not found' >&2\nexit 100\n"
    )
    monkeypatch.setattr(debian, "MIRROR", (tmp_path / "nowhere").as_uri())
    with pytest.raises(
        DataError,
        match=(
            "could not be fetched .apt-get: E: Version 1-1 for x was not found; "
            "file:.*nowhere.*No such file"
        ),
    ):
        fetch(deb, tmp_path / "out2")


def test_without_apt_and_network(deb, tmp_path, no_apt, monkeypatch):
    monkeypatch.setattr(debian, "MIRROR", "http://127.0.0.1:9/debian")
    with pytest.raises(
        DataError,
        match=(
            "there is no apt-get; http://127.0.0.1:9/debian/pool.*refused.*give the file's path "
            "or a mirror"
        ),
    ):
        fetch(deb, tmp_path / "out")
    with pytest.raises(DataError, match="no file '/no/such.deb'"):
        debian.fetch("x", "1-1", PATH, "00", pathlib.Path(tmp_path), source="/no/such.deb")

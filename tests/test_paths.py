"""Local and remote paths, against what another client of the store (boto3) sees."""

import importlib.util
import json
import pathlib
import sys

import boto3
import object_store
import pytest

from jaxvl import caption, evaluate, paths, plan, train
from jaxvl.config import ConfigError, load_file
from jaxvl.data.sources.questions import Questions
from jaxvl.data.tokenizers import TokenizerConfig, make_tokenizer
from jaxvl.models import presets


@pytest.fixture(scope="module")
def bucket():
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield object_store.start(monkeypatch)


@pytest.fixture(scope="module")
def client(bucket):
    return boto3.client("s3")


def put(client, bucket, key, data):
    client.put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=data)


def test_a_local_path_is_pathlibs(tmp_path):
    assert paths.as_path(str(tmp_path)) == tmp_path
    assert isinstance(paths.as_path("runs/a:b"), pathlib.Path)
    assert paths.absolute("runs") == pathlib.Path("runs").absolute()


def test_a_remote_path_stays_as_it_is_written(bucket):
    assert str(paths.absolute(f"{bucket}/run") / "metrics.jsonl") == f"{bucket}/run/metrics.jsonl"


def test_what_is_written_is_what_another_client_reads(bucket, client):
    folder = paths.as_path(f"{bucket}/written")
    paths.make_folder(folder)
    paths.write_text(folder / "a.json", "first")
    paths.write_text(folder / "a.json", "grün")
    found = client.get_object(Bucket=bucket.removeprefix("s3://"), Key="written/a.json")[
        "Body"
    ].read()
    assert found == "grün".encode()
    put(client, bucket, "written/deep/er/b.txt", b"b")
    assert paths.read_text(folder / "a.json") == "grün"
    assert [str(file) for file in paths.files_below(folder)] == [
        f"{bucket}/written/a.json",
        f"{bucket}/written/deep/er/b.txt",
    ]
    assert [file.name for file in paths.list_folder(folder, "*.json")] == ["a.json"]
    assert (
        paths.is_file(folder / "a.json") and not paths.is_file(folder) and paths.is_folder(folder)
    )
    assert paths.list_folder(folder / "not there") == []


def test_a_folder_is_moved(bucket, client, tmp_path):
    put(client, bucket, "moved/4/a/b.txt", b"b")
    put(client, bucket, "moved/4/c.txt", b"c")
    put(client, bucket, "moved/42/d.txt", b"d")
    folder = paths.as_path(f"{bucket}/moved")
    paths.move(folder / "4", folder / "damaged-4")
    names = [str(file.relative_to(folder)) for file in paths.files_below(folder)]
    assert names == ["42/d.txt", "damaged-4/a/b.txt", "damaged-4/c.txt"]
    assert paths.read_bytes(folder / "damaged-4" / "c.txt") == b"c"
    with pytest.raises(FileNotFoundError):
        paths.move(folder / "4", folder / "5")
    (tmp_path / "4").mkdir()
    paths.move(tmp_path / "4", tmp_path / "5")
    assert (tmp_path / "5").is_dir()


def test_a_file_that_is_written_anew_is_never_half(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    paths.write_text(file, "old")

    def full(self, data):
        raise OSError("No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        paths.write_text(file, "new")
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "ftp://host/run",
            r"'ftp://host/run': ftp:// is not known; must be a local path or one of gs://, s3://, az://, hf://",
        ),
        (
            "s3://bucket/run",
            r"'s3://bucket/run': s3:// needs s3fs, which is not installed: pip install \"jaxvl\[remote\]\"",
        ),
        (
            "gs://bucket/run",
            r"'gs://bucket/run': gs:// needs gcsfs, which is not installed: pip install \"jaxvl\[remote\]\"",
        ),
    ],
)
def test_what_cannot_be_reached_is_one_line(text, message, monkeypatch):
    without_libraries(monkeypatch)
    with pytest.raises(paths.PathError, match=f"^{message}$"):
        paths.as_path(text)


def without_libraries(monkeypatch):
    find = importlib.util.find_spec
    missing = ("s3fs", "gcsfs")
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name in missing else find(name, *more),
    )


@pytest.mark.parametrize(
    "command, options",
    [
        (train, ["--config=configs/align_shapes.py", "--workdir=s3://bucket/run"]),
        (train, ["--config=s3://bucket/config.py", "--workdir=runs/a"]),
        (evaluate, ["--workdir=s3://bucket/run"]),
        (plan, ["--config=s3://bucket/config.py", "--topology=v5e:4x4"]),
    ],
)
def test_without_the_library_a_command_names_pip(command, options, monkeypatch, capsys):
    without_libraries(monkeypatch)
    assert command.main(options) == 2
    said = capsys.readouterr()
    lines = (said.err + said.out).strip().splitlines()
    assert len(lines) == 1 and 'pip install "jaxvl[remote]"' in lines[0]


def test_a_bucket_that_is_not_there_is_one_line(bucket, tmp_path, capsys):
    (tmp_path / "config.py").write_text(
        "import ml_collections\n\n\ndef get_config():\n    model = dict(name='align')\n"
        "    fields = dict(image=dict(name='picture'), text=dict(name='caption', "
        "columns='name/en', length=8))\n"
        "    data = dict(source=dict(name='shapes', split='train_a'), batch=8, fields=fields)\n"
        "    tasks = dict(pairs=dict(data=data, objectives=dict(align=1.0)))\n"
        "    return ml_collections.ConfigDict(dict(model=model, tasks=tasks, steps=2, "
        "optim=dict(warmup=0)))\n"
    )
    assert (
        train.main([f"--config={tmp_path / 'config.py'}", "--workdir=s3://no-such-bucket/run"]) == 1
    )
    assert "there is no bucket s3://no-such-bucket" in capsys.readouterr().err.replace("\n", " ")


def test_checkpoints_are_refused_where_tensorstore_cannot_write(monkeypatch):
    from jaxvl.training.object_store import prepare

    with pytest.raises(
        ConfigError,
        match=r"'hf://me/run': checkpoints can be kept in a local folder, gs:// and s3://",
    ):
        prepare(paths.epath.Path("hf://me/run"))


def test_a_config_and_the_one_beside_it(bucket, client):
    put(
        client,
        bucket,
        "configs/base.py",
        b"import ml_collections\n\ndef get_config(arg='x'):\n"
        b"    return ml_collections.ConfigDict({'steps': 3, 'arg': arg})\n",
    )
    put(
        client,
        bucket,
        "configs/more.py",
        b"from jaxvl.config import load_file\nfrom jaxvl.paths import as_path\n\ndef get_config(arg):\n"
        b"    c = load_file(str(as_path(__file__).with_name('base.py')))\n    c.arg = arg\n    return c\n",
    )
    assert load_file(f"{bucket}/configs/more.py:long,n=2").to_dict() == {
        "steps": 3,
        "arg": "long,n=2",
    }
    assert load_file(f"{bucket}/configs/base.py").arg == "x"
    with pytest.raises(
        ConfigError, match=r"no file '.*/configs/bas.py'; did you mean '.*/configs/base.py'"
    ):
        load_file(f"{bucket}/configs/bas.py")


def test_questions_and_their_pictures(bucket, client):
    asked = {"image": "im/1.png", "question": "Which colour?", "answers": ["red"]}
    put(client, bucket, "vqa/val.jsonl", json.dumps(asked).encode())
    put(client, bucket, "pictures/im/1.png", b"picture")
    source = Questions(f"{bucket}/vqa", "val", f"{bucket}/pictures").open()
    assert (
        len(source) == 1
        and source[0]["image"] == b"picture"
        and source[0]["text"] == "Which colour? red"
    )
    with pytest.raises(
        ConfigError, match=r"split: 'vla' is none; did you mean 'val'\? \(splits: val\)"
    ):
        Questions(f"{bucket}/vqa", "vla", f"{bucket}/pictures")


def test_pictures_of_a_folder(bucket, client, tmp_path):
    for name in ("b.png", "a.txt", "deep/c.JPG"):
        put(client, bucket, f"seen/{name}", b"picture")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"picture")
    for place in (f"{bucket}/seen", str(tmp_path)):
        assert [str(file) for file in caption.pictures([place, f"{place}/a.txt"])] == [
            f"{place}/b.png",
            f"{place}/deep/c.JPG",
            f"{place}/a.txt",
        ]
    with pytest.raises(ConfigError, match="is not there"):
        list(caption.pictures([f"{bucket}/not-there"]))


def test_a_vocabulary(bucket, client):
    put(client, bucket, "vocab.txt", b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nred\nstar\n")
    tokenizer = make_tokenizer(TokenizerConfig(kind="wordpiece", path=f"{bucket}/vocab.txt"))
    assert tokenizer.encode(["red star"], 5).tolist() == [[2, 4, 5, 3, 0]]
    with pytest.raises(ConfigError, match="path: no file"):
        TokenizerConfig(kind="wordpiece", path=f"{bucket}/vocab2.txt")


def test_a_saved_model(bucket, client):
    put(client, bucket, "saved/config.json", b'{"model": {"name": "align"}}')
    assert presets.saved(f"{bucket}/saved") == {"name": "align"}
    with pytest.raises(OSError):
        presets.saved(f"{bucket}/not-there")


def test_importing_jaxvl_imports_no_store_library():
    """They take a second, and only those who name a remote path pay for it."""
    import subprocess

    program = (
        "import sys, jaxvl.config, jaxvl.paths; sys.exit('s3fs' in sys.modules or 'gcsfs' in "
        "sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0

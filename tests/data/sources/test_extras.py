"""A format whose library is not installed says what to install, and nothing else needs it."""

import subprocess
import sys

import pytest
from twelve_records import HERE

from jaxvl.config import ConfigError, resolve
from jaxvl.data.sources import SOURCES


@pytest.mark.parametrize(
    "name, library, options",
    [
        ("parquet", "pyarrow", {"files": "a.parquet"}),
        ("huggingface", "datasets", {"path": "."}),
        ("tfds", "tensorflow_datasets", {"data_dir": "."}),
        ("mds", "zstandard", {"path": str(HERE / "mds" / "zstd")}),
    ],
)
def test_what_to_install_is_said(name, library, options, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    said = rf'^name: {name!r} needs {library.replace("_", "-")}.*, which is not installed: pip install "jaxvl\[{name}\]"$'
    with pytest.raises(ConfigError, match=said):
        resolve(SOURCES[name], options).open(lambda line: None)


def test_no_format_imports_its_library_before_it_is_used():
    program = (
        "import sys\nfrom jaxvl.data.sources import SOURCES\n"
        "for name in ('parquet', 'huggingface', 'tfds', 'array_record', 'jsonl', 'csv', "
        "'folder', 'mds', 'where', 'joined'): SOURCES[name]\n"
        "found = {'pyarrow', 'datasets', 'tensorflow_datasets', 'pandas', 's3fs'} & "
        "set(sys.modules)\n"
        "assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""Launchers are run as a user runs them."""

import os
import pathlib
import sys

import pytest

FOLDER = pathlib.Path(__file__).parent
for folder in (FOLDER.parent / "training", FOLDER.parent.parent / "launch"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where `JAXVL_ENGINES=required`, as in nightly tests, an engine that is not there is a
    failure."""
    report = yield
    if report.skipped and os.environ.get("JAXVL_ENGINES") == "required":
        report.outcome = "failed"
        report.longrepr = f"{report.longrepr[-1]}: JAXVL_ENGINES=required"
    return report


@pytest.fixture
def tools(tmp_path):
    """Puts programs that stand for others on the PATH; the environment with it."""
    from launched import PRINTER

    def make(**texts):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name, text in {"printer": PRINTER.format(python=sys.executable), **texts}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(tmp_path)}

    return make

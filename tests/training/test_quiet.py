"""Reading a run's checkpoints warns of nothing."""

from absl import logging

from jaxvl.training.checkpoint import Checkpoints
from jaxvl.training.quiet import quiet


def test_reading_warns_of_nothing(tmp_path, caplog):
    (tmp_path / "checkpoints").mkdir()
    before = logging.get_verbosity()
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).steps == []
    assert not caplog.records
    assert logging.get_verbosity() == before


def test_verbosity_is_put_back_after_an_error():
    before = logging.get_verbosity()
    try:
        with quiet():
            assert logging.get_verbosity() == logging.ERROR
            raise ValueError
    except ValueError:
        pass
    assert logging.get_verbosity() == before

import numpy as np
import pytest
from data_samples import FakeConfig, FakeSource, row_of, tokenizer

from jaxvl.config import ConfigError, resolve
from jaxvl.data.batches import Batches
from jaxvl.data.config import DataConfig
from jaxvl.data.fields.constant import Constant
from jaxvl.data.fields.numbers import Group

TOKENIZER = tokenizer()


@pytest.mark.parametrize("value", [2.5, 0.0, -1e6, 3])
def test_a_number_is_a_float32(value):
    made = row_of(Constant(value), {}, tokens=TOKENIZER)["x"]
    assert made == np.float32(value) and made.dtype == np.float32 and made.shape == ()


def test_a_text_is_its_tokens():
    made = row_of(Constant("red star", length=7), {}, tokens=TOKENIZER)["x"]
    np.testing.assert_array_equal(made, TOKENIZER.encode(["red star"], 7)[0])
    assert made.dtype == np.int32


def test_every_row_has_it_and_no_column_is_read():
    source = FakeSource(9)
    fields = dict(
        number=Constant(2.5), prompt=Constant("red star", length=7), group_id=Group("class_label")
    )
    config = DataConfig(FakeConfig(), batch=8, fields=fields)
    b = Batches(config, source, TOKENIZER, seed=0)
    for i in range(3):
        batch = b[i]
        assert (batch["number"] == 2.5).all() and (
            batch["prompt"] == TOKENIZER.encode(["red star"], 7)
        ).all()
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
            k: (s.shape, s.dtype) for k, s in config.shapes.items()
        }
    b.close()
    assert all(tuple(asked) == ("class_label",) for asked in source.asked)
    assert fields["number"].inputs("x") == {} and fields["number"].needs(source) == []


def test_a_config_says_a_number_or_a_text():
    node = lambda value, **options: dict(
        source="shapes", batch=8, fields=dict(x=dict(name="constant", value=value, **options))
    )
    assert resolve(DataConfig, node(3)).fields["x"] == Constant(3.0)
    assert resolve(DataConfig, node("look")).fields["x"] == Constant("look")
    with pytest.raises(ConfigError, match="^fields.x.length: 2 must be"):
        resolve(DataConfig, node("look", length=2))
    with pytest.raises(ConfigError, match="^fields.x.value: "):
        resolve(DataConfig, node([1]))

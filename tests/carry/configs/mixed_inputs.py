from jaxvl.config import load_file
from jaxvl.paths import as_path


def get_config():
    c = load_file(str(as_path(__file__).with_name("base.py")))
    c.plugins = ("../mixed_inputs.py",)
    c.tasks.pairs.before = dict(blend=dict(low=0.7))
    return c

from jaxvl.config import load_file
from jaxvl.paths import as_path


def get_config():
    c = load_file(str(as_path(__file__).with_name("base.py")))
    c.plugins = ("../rescaled.py",)
    c.adapters = dict(ia3=dict(name="rescale", paths="attention/(key|value)$|mlp/up$"))
    return c

from jaxvl.config import load_file
from jaxvl.paths import as_path


def get_config():
    c = load_file(str(as_path(__file__).with_name("base.py")))
    c.plugins = ("../adversarial.py",)
    source = dict(name="shapes", size=16, variants=1, split="test_a")
    c.evals = dict(pushed=dict(name="adversarial", source=source))
    return c

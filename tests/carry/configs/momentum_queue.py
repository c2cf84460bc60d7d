from jaxvl.config import load_file
from jaxvl.paths import as_path


def get_config():
    c = load_file(str(as_path(__file__).with_name("base.py")))
    c.plugins = ("../momentum_queue.py",)
    c.teachers = dict(momentum=dict(source="ema", decay=0.9))
    c.tasks.pairs.before = dict(momentum=dict(name="teach", teacher="momentum"))
    c.tasks.pairs.objectives = dict(momentum_queue=dict(weight=1.0, queue=32))
    return c

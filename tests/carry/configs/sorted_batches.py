from jaxvl.config import load_file
from jaxvl.paths import as_path


def get_config():
    c = load_file(str(as_path(__file__).with_name("base.py")))
    c.plugins = ("../sorted_batches.py",)
    c.after = dict(halves=dict(name="halves", every=2))
    c.tasks.pairs.data.tables = dict(halves="halves")
    c.tasks.pairs.data.sampler = dict(name="per_cluster", table="halves")
    return c

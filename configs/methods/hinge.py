"""The hinge over the hardest wrong pair (VSE++, Faghri et al. 2018, arXiv 1707.05612), on the
generated corpus; or over all of them (Merkx and Frank 2019, arXiv 1903.11393).

A batch has several pictures of one name, which are no wrong pairs.

launch/local.sh configs/methods/hinge.py
launch/local.sh configs/methods/hinge.py:negatives=sum
"""

from jaxvl.config import load_file, parse_arg
from jaxvl.paths import as_path


def get_config(arg=""):
    negatives = parse_arg(arg, negatives="hardest").negatives
    c = load_file(str(as_path(__file__).with_name("gap.py")))
    data = c.tasks.pairs.data
    data.fields.group_id = dict(name="group", column="class_label")
    hinge = dict(weight=1.0, negatives=negatives, duplicates="mask")
    c.tasks.pairs.objectives = dict(hinge=hinge)
    return c

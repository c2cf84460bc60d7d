"""Late interaction of patches and words (FILIP, Yao et al. 2022, arXiv 2111.07783), on the generated
corpus.

Beside it the plain contrast learns the pooled embeddings, which the evaluator reads; FILIP has its
loss alone, and evaluates with its scores.

launch/local.sh configs/methods/late_interaction.py
launch/local.sh configs/methods/late_interaction.py:form=colbert
"""

from jaxvl.config import load_file, parse_arg
from jaxvl.paths import as_path


def get_config(arg=""):
    form = parse_arg(arg, form="filip").form
    c = load_file(str(as_path(__file__).with_name("gap.py")))
    reads = ("image", "text")
    c.model.heads = dict(tokens=dict(name="token_projection", reads=reads, dim=32))
    data = c.tasks.pairs.data
    data.fields.group_id = dict(name="group", column="class_label")
    options = dict(image="tokens/image", text="tokens/text", duplicates="positive")
    c.tasks.pairs.objectives = dict(
        clip=dict(weight=1.0, duplicates="positive"),
        late_interaction=dict(weight=1.0, form=form, **options),
    )
    del c.evals["gap"]
    return c

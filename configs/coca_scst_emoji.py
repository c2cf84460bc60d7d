"""Self-critical fine-tuning of `coca_emoji.py`: captions are rewarded for how well they fit their
picture.

    launch/local.sh configs/coca_emoji.py
    launch/local.sh configs/coca_scst_emoji.py:start=runs/coca_emoji

The run starts from the weights of `start`, and these, frozen, are the teacher that rewards;
`grammar=0` leaves out the head that knows broken captions. Contrastive and captioning losses go on
beside it, so that the model neither forgets how to find pictures nor writes for the teacher alone.
"""

from jaxvl.config import load_file, parse_arg
from jaxvl.paths import as_path


def get_config(arg=""):
    arg = parse_arg(arg, start="runs/coca_emoji", grammar=0.5)
    c = load_file(str(as_path(__file__).with_name("coca_emoji.py")))
    c.start = arg.start
    c.teachers = dict(reward=dict(source="initial"))
    c.tasks.pairs.before = dict(
        captions=dict(name="sample_captions", teacher="reward", broken=arg.grammar > 0)
    )
    c.tasks.pairs.objectives = dict(
        self_critical=dict(weight=1.0, grammar=arg.grammar),
        align=dict(weight=0.2, label_smoothing=0.1, duplicates="positive"),
        captioning=dict(weight=0.2, label_smoothing=0.1),
    )
    c.steps = 300
    c.optim = dict(
        name="adamw", lr=1e-4, warmup=30, schedule="cosine", b2=0.98, weight_decay=0.05, ema=0.99
    )
    for evaluator in c.evals.values():
        evaluator.every = 100
    c.checkpoint = dict(every=100, keep=2)
    return c

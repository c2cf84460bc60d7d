"""One training step of CoCa with both losses, beside one with either loss alone.

    python -m jaxvl.bench.coca                    # configs/coca_emoji.py as it is

The steps are the run's own (augmentation, both passes, optimiser, average, guard), on one batch
that stays on the device, in turn in one process. The paper gives about 1.18 x the cost of
contrastive training (Yu et al. 2022, table 8b). `contrast` and `caption` are the config's `loss=`
arguments: a loss of weight 0 is not computed.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from jaxvl.aliases import Json
from jaxvl.bench.harness import in_turn, publish, ratio
from jaxvl.bench.one_step import one_step
from jaxvl.config import load_file, override, resolve
from jaxvl.training.experiment import Experiment

LOSSES = ("both", "contrast", "caption")


def taker(config: str, loss: str, changes: dict[str, str]) -> Callable[[], object]:
    """A function that takes one step. Objectives of weight 0 are left out."""
    node = override(load_file(f"{config}:loss={loss}"), changes)
    return one_step(resolve(Experiment, node)).take


def main(argv: list[str] | None = None) -> dict[str, Json]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config",
        default="configs/coca_emoji.py",
        help="a config with the argument loss=both, contrast or caption",
    )
    parser.add_argument("--batch", type=int, help="instead of the config's")
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="of one step that does not count and two that do, per loss",
    )
    parser.add_argument("--json", type=pathlib.Path, help="file for the figures")
    args = parser.parse_args(argv)
    changes = {"tasks.pairs.data.batch": str(args.batch)} if args.batch else {}
    made = {loss: taker(args.config, loss, changes) for loss in LOSSES}
    seconds = in_turn(made, args.rounds, calls=2, warm=1)
    costs = {loss: ratio(seconds, loss, "both") for loss in LOSSES[1:]}
    table = Table(title=f"CoCa, {args.config}, {args.rounds} rounds in turn", title_justify="left")
    for heading in ("loss", "median s", "min s", "max s", "both costs"):
        table.add_column(heading, justify="right" if heading != "loss" else "left")
    for loss, s in seconds.items():
        cost = "" if loss == "both" else "{:.2f} x ({:.2f} … {:.2f})".format(*costs[loss])
        table.add_row(loss, f"{statistics.median(s):.3f}", f"{min(s):.3f}", f"{max(s):.3f}", cost)
    result = {"config": args.config, "changes": changes, "seconds": seconds, "both_costs": costs}
    return publish(Console(), table, result, args.json)


if __name__ == "__main__":
    main()

"""Whether a run may go on from the checkpoint in its workdir."""

from __future__ import annotations

import json
from typing import Any

from jaxvl.config import ConfigError
from jaxvl.data.preprocess import Preprocess


def refuse_other(ours: dict[str, Any], saved: dict[str, Any]) -> None:
    """Raises ConfigError where a checkpoint's model, tokenizer or preprocessing is not that of this run, or where it is none of a run."""
    if saved.get("weights_only"):
        raise ConfigError("--workdir", "holds converted weights, not a run; choose another, and config.init_from=FOLDER to start from them")
    if saved["config"]["model"] != json.loads(json.dumps(ours["config"]["model"])):
        old, new = saved["config"]["model"], ours["config"]["model"]
        differing = [k for k in sorted({*old, *new}) if json.dumps(old.get(k)) != json.dumps(new.get(k))]
        raise ConfigError(f"model.{differing[0] if differing else 'name'}", "differs from the checkpoint in the workdir "
                          f"({old.get(differing[0])!r} there, {new.get(differing[0])!r} here); choose another --workdir, or the old config")  # fmt: skip
    for part, parsed in (("tokenizer", str), ("preprocess", Preprocess.from_json)):  # parsed: older ones have fewer fields
        if parsed(saved[part]) != parsed(ours[part]):
            raise ConfigError(part, "differs from that of the checkpoint in the workdir; choose another --workdir, or the old config")

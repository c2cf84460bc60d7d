"""Turns the device metrics of each step into records on the host without making a step wait."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence

import jax

from jaxvl.data import bottlenecks
from jaxvl.data.feed import SIGNAL, Feed
from jaxvl.sharding.hosts import Signal
from jaxvl.training.cost import Cost
from jaxvl.training.goodput import Account, Clock
from jaxvl.training.schedule import Turn

ALL = "all"  # name of the record of all tasks together


@dataclasses.dataclass(frozen=True)
class Record:
    """Figures of one step of one task, or of `ALL`, as Python floats."""

    step: int
    task: str
    scalars: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Speed:
    """What the meter needs to know to compare a run with its devices.

    Attributes:
      costs: of one step of every turn; a turn that is missing counts no FLOP.
      devices: of the mesh, over all processes.
      peak: FLOP/s that one of them can do; None: not known.
    """

    costs: Mapping[Turn, Cost] = dataclasses.field(default_factory=dict)
    devices: int = 1
    peak: float | None = None


class Meter:
    """Every `every` steps, one record per task that ran since; of several tasks also one of them
    together, named `ALL`.

    The host stays at most one step ahead of the devices: `tick` waits for the step before the one
    just started. So the time that a feed makes the loop wait is an upper bound of the time for
    which the devices had nothing to do.

    Scalars of every record besides the step's own:
      task_steps: of the task, since the start of the run.
      skipped_records: of the task's source, which this process has counted since it started; the
        event at the end of a run has all.
      examples_per_second, examples_per_second_per_chip: rows of all tasks. A chip is a device of
        the mesh.
      seconds_per_step: with the wait for data, without evaluation and checkpoints; so are all
        rates.
      data_wait: share of that time spent waiting for a batch.
      input_read, input_decode, input_transform, input_transfer: shares of the work of the input,
        over all threads of this process.
      tflops_per_chip: 1e12 model FLOP/s. Model FLOP are those of the forward and backward pass
        without recomputation (`Cost.model_flops`): counted, not estimated from the number of
        parameters.
      mfu: these as a share of the device's peak; where the peak is known. The peak is that of dense
        bfloat16 products (or `log.peak_flops`), also where `dtype` is float32.
      hfu: the same with recomputation (`remat`, microbatches): what the devices really did.

    Scalars of the record that stands for the whole run (`ALL`, or the only task's):
      goodput: share of the wall time since the start of this process that went into steps, without
        the wait for data.
      goodput_interval: the same since the last record.
      share_data, share_startup, share_evaluation, share_checkpoint: where the rest of `goodput`
        went; the five add up to 1.
      memory_gib, memory_share: the most that one of this process's devices has held so far, in 2^30
        bytes and of its memory; where the backend tells.

    Of all together, from the latest figures of every task that has run, however old: `loss` (their
    mean), `loss/TASK`, `steps/TASK`, `skipped`, `lr` and the rates.
    """

    def __init__(
        self,
        every: int,
        feeds: Mapping[str, Feed],
        clock: Clock | None = None,
        speed: Speed = Speed(),
    ):
        self._every = every
        self._feeds = feeds
        self._speed = speed
        self._clock = clock or Clock()
        self._new: dict[str, tuple[int, dict[str, jax.Array]]] = {}
        self._last: dict[str, Record] = {}
        self._joint = False  # whether a step runs several tasks
        self._before: jax.Array | None = None
        self._clock.start("training")
        self._begin()

    def _begin(self) -> None:
        """Starts an interval."""
        self._steps = self._rows = 0
        self._flops = self._model_flops = 0.0
        self._then = self._seconds()
        self._stages_then = self._stages()

    def _seconds(self) -> dict[str, float]:
        """By account, and the wait for data, which is part of `training`."""
        return {**self._clock.seconds(), "data": sum(feed.waited for feed in self._feeds.values())}

    def _stages(self) -> dict[str, float]:
        return bottlenecks.add(feed.stage_seconds for feed in self._feeds.values())

    def input_shares(self) -> dict[str, float]:
        """Share of each stage in the work of the input, since the start of this process."""
        return bottlenecks.shares(self._stages())

    def tick(
        self, step: int, turn: Turn, metrics: Sequence[dict[str, jax.Array]]
    ) -> Iterator[Record]:
        """Call after each step was started, with the metrics of each of its tasks; yields records
        when they are due."""
        if self._before is not None:
            self._before.block_until_ready()
        self._before = metrics[0]["loss"]
        self._joint = len(turn.tasks) > 1
        for task, figures in zip(turn.tasks, metrics):
            self._new[task] = step, figures
            self._rows += self._feeds[task].rows
        self._steps += 1
        if turn in self._speed.costs:
            self._flops += self._speed.costs[turn].flops
            self._model_flops += self._speed.costs[turn].model_flops
        if step % self._every == 0:
            yield from self.flush()

    @contextlib.contextmanager
    def away(self, account: Account) -> Iterator[None]:
        """The time inside is no training: it counts in no rate. Waits for the last step first."""
        if self._before is not None:
            self._before.block_until_ready()
        with self._clock.away(account):
            yield

    def flush(self) -> list[Record]:
        """Records of what has not been reported yet."""
        values = {}
        for task, (step, metrics) in self._new.items():
            scalars = jax.device_get(metrics)
            if (
                scalars.pop(SIGNAL, Signal.FINE) < Signal.BROKEN
            ):  # figures of rows that are none would be taken for real ones
                values[task] = step, scalars
        now = self._seconds()
        spent = {account: now[account] - self._then[account] for account in now}
        now_stages = self._stages()
        worked = bottlenecks.shares(
            {stage: now_stages[stage] - self._stages_then[stage] for stage in now_stages}
        )
        rates = self._rates(spent) | {f"input_{stage}": share for stage, share in worked.items()}
        whole = {
            **_shares(now),
            "goodput_interval": _shares(spent)["goodput"],
            **memory(jax.local_devices()),
        }
        records = []
        for task, (step, scalars) in values.items():
            feed = self._feeds[task]
            sums = {
                "task_steps": float(feed.steps),
                "skipped_records": float(sum(feed.skipped.values())),
            }
            records.append(
                Record(step, task, {**{k: float(v) for k, v in scalars.items()}, **rates, **sums})
            )
        self._last |= {record.task: record for record in records}
        if records and len(self._feeds) > 1:
            newest = max(records, key=lambda record: record.step)
            together = {**self._together(), "lr": newest.scalars["lr"], **rates, **whole}
            records.append(Record(newest.step, ALL, together))
        else:
            for record in records:
                record.scalars.update(whole)
        self._new = {}
        self._begin()
        return records

    def _rates(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """Of an interval with so many seconds in each account."""
        training = max(seconds["training"], 1e-9)
        devices = self._speed.devices
        rates = {
            "examples_per_second": self._rows / training,
            "examples_per_second_per_chip": self._rows / training / devices,
            "seconds_per_step": training / max(self._steps, 1),
            "data_wait": min(seconds["data"] / training, 1.0),
        }
        if self._model_flops:
            rates["tflops_per_chip"] = self._model_flops / training / devices / 1e12
        if self._model_flops and self._speed.peak is not None:
            rates["mfu"] = self._model_flops / training / devices / self._speed.peak
            rates["hfu"] = self._flops / training / devices / self._speed.peak
        return rates

    def shares(self) -> dict[str, float]:
        """`goodput`, and the shares of the wall time that went elsewhere, since the start of this
        process."""
        return _shares(self._seconds())

    def wall(self) -> float:
        """Seconds since the start of this process's clock."""
        return sum(self._clock.seconds().values())

    def _together(self) -> dict[str, float]:
        last = {task: self._last[task].scalars for task in self._feeds if task in self._last}
        count = max if self._joint else sum  # tasks that are summed skip a step together
        return {
            "loss": statistics.fmean(scalars["loss"] for scalars in last.values()),
            **{f"loss/{task}": scalars["loss"] for task, scalars in last.items()},
            **{f"steps/{task}": float(feed.steps) for task, feed in self._feeds.items()},
            "skipped": count(scalars["skipped"] for scalars in last.values()),
        }


def _shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """The goodput and the rest of the wall time, from seconds by account and of waiting for data;
    they add up to 1."""
    wall = max(sum(spent for account, spent in seconds.items() if account != "data"), 1e-9)
    data = min(seconds["data"], seconds["training"])
    return {
        "goodput": (seconds["training"] - data) / wall,
        "share_data": data / wall,
        "share_startup": seconds["startup"] / wall,
        "share_evaluation": seconds["evaluation"] / wall,
        "share_checkpoint": seconds["checkpoint"] / wall,
    }


def memory(devices: Sequence[jax.Device]) -> dict[str, float]:
    """`memory_gib` and `memory_share` of the fullest device so far; empty where the backend does
    not tell, as a CPU."""
    stats = [device.memory_stats() or {} for device in devices]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    shares = [
        s["peak_bytes_in_use"] / s["bytes_limit"]
        for s in stats
        if s.get("bytes_limit") and "peak_bytes_in_use" in s
    ]
    figures = {}
    if peaks:
        figures["memory_gib"] = max(peaks) / 2**30
    if shares:
        figures["memory_share"] = max(shares)
    return figures

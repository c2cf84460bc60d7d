"""Time and memory of the contrastive core, forward and backward, against XLA's materialised form
and Inf-CL's Triton kernel (`pip install inf-cl`, with torch for CUDA)."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from jaxvl.bench.accelerator_parts.numbers import LOG_SCALE, kernels, unit_rows
from jaxvl.bench.accelerator_parts.part import (
    Deadline,
    Row,
    Sizes,
    platform,
    reason,
    seconds_of,
)
from jaxvl.bench.contrastive import loss_and_gradients
from jaxvl.bench.harness import isolated

MIB = 2**20


def run(sizes: Sizes, deadline: Deadline) -> Iterator[Row]:
    """One row per B, D and implementation, bfloat16."""
    for width in sizes.widths:
        for rows in sizes.rows:
            takers: dict[str, Callable[[], Row]] = {
                name: functools.partial(_ours, rows, width, implementation, sizes)
                for name, implementation in {
                    **kernels(sizes, "bfloat16"),
                    "materialised": "materialised",
                }.items()
            }
            takers["inf_cl"] = functools.partial(_inf_cl, rows, width, sizes)
            for name, take in takers.items():
                if deadline.left < 0:
                    return
                row: Row = {"batch": rows, "width": width, "implementation": name}
                try:
                    row |= take()
                except Exception as error:  # out of memory, above all
                    row["failed"] = reason(error)
                if "seconds" in row:
                    # Forward one product of 2 B^2 D FLOP, backward two of gradients; logits that
                    # are computed again do not count.
                    row["tflop_per_second"] = 6 * rows**2 * width / row["seconds"] / 1e12
                yield row


def _ours(rows: int, width: int, implementation: object, sizes: Sizes) -> Row:
    u, v = unit_rows(rows, width, "bfloat16")
    inputs = u, v, jnp.float32(LOG_SCALE), jnp.float32(0.0)
    step = loss_and_gradients("softmax", implementation=implementation)
    program = step.lower(*inputs).compile()
    seconds = seconds_of(functools.partial(program, *inputs), sizes)
    temporary = program.memory_analysis().temp_size_in_bytes
    loss = float(program(*inputs)[0])
    return {"seconds": seconds, "temporary_mib": temporary / MIB, "loss": loss}


def _inf_cl(rows: int, width: int, sizes: Sizes) -> Row:
    if platform() != "gpu" or not all(map(importlib.util.find_spec, ("torch", "inf_cl"))):
        return {"skipped": "needs a CUDA GPU, torch and inf-cl"}
    with isolated(inf_cl_step, rows, width, sizes.repeats) as take:
        return take()


def inf_cl_step(rows: int, width: int, repeats: int) -> Callable[[], Row]:
    """Both directions of the loss by Inf-CL, in a process of its own."""
    import torch
    from inf_cl import cal_flash_loss

    u, v = (
        torch.tensor(jax.device_get(x.astype(jnp.float32)), device="cuda", dtype=torch.bfloat16)
        for x in unit_rows(rows, width, "bfloat16")
    )
    u.requires_grad_(True)
    v.requires_grad_(True)
    log_scale = torch.tensor(LOG_SCALE, device="cuda", requires_grad=True)

    def step():
        scale = log_scale.exp()
        loss = (
            cal_flash_loss(u, v, scale=scale).mean() + cal_flash_loss(v, u, scale=scale).mean()
        ) / 2
        loss.backward()
        return loss

    def take() -> Row:
        step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = []
        for _ in range(repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            loss = step()
            end.record()
            torch.cuda.synchronize()
            found.append(begin.elapsed_time(end) / 1e3)
        peak = torch.cuda.max_memory_allocated() - before
        seconds = sorted(found)[len(found) // 2]
        return {"seconds": seconds, "temporary_mib": peak / MIB, "loss": loss.item()}

    return take

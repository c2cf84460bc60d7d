"""The same CLIP models in open_clip on the same GPU: torch.compile and bfloat16, as its
`--torchcompile --precision amp_bf16` has them."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator

from jaxvl.bench.accelerator_parts.part import Deadline, Row, Sizes, platform, reason
from jaxvl.bench.harness import isolated
from jaxvl.bench.step import VOCABULARY, inputs
from jaxvl.interop.peers import peer

MODELS = {"CLIP ViT-B/16": "ViT-B-16", "CLIP ViT-L/14": "ViT-L-14"}
NEEDED = ("torch", "open_clip")
BATCHES = (512, 256, 128, 64)


def run(sizes: Sizes, deadline: Deadline) -> Iterator[Row]:
    """One row per model."""
    for system, model in MODELS.items():
        if platform() != "gpu" or not all(map(importlib.util.find_spec, NEEDED)):
            yield {"system": system, "skipped": "needs a CUDA GPU, torch and open_clip"}
            continue
        for batch in BATCHES:
            if deadline.left < 0:
                return
            row: Row = {"system": system, "batch": batch}
            try:
                with isolated(open_clip_step, model, batch, sizes.repeats) as take:
                    row |= take()
            except RuntimeError as error:  # what its process died of
                row["failed"] = reason(error)
            yield row
            if "seconds" in row:
                break


def open_clip_step(model: str, batch: int, repeats: int) -> Callable[[], Row]:
    """A taker that measures: forward, loss, backward and fused AdamW."""
    torch = peer("torch")
    open_clip = peer("open_clip")
    torch.set_float32_matmul_precision("high")
    net = open_clip.create_model(model, device="cuda")
    net.train()
    compiled = torch.compile(net)
    loss_of = open_clip.ClipLoss()
    optimiser = torch.optim.AdamW(net.parameters(), 1e-4, weight_decay=0.2, fused=True)
    image, text = (torch.from_numpy(x).cuda() for x in inputs(batch))
    image = image.permute(0, 3, 1, 2).contiguous()
    assert int(text.max()) < VOCABULARY

    def step():
        optimiser.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = loss_of(*compiled(image, text.long()))
        loss.backward()
        optimiser.step()
        return loss

    def take() -> Row:
        began = time.perf_counter()
        for _ in range(3):
            step()
        torch.cuda.synchronize()
        compile_seconds = time.perf_counter() - began
        torch.cuda.reset_peak_memory_stats()
        found = []
        for _ in range(2 * repeats):
            began = time.perf_counter()
            loss = step()
            torch.cuda.synchronize()
            found.append(time.perf_counter() - began)
        seconds = sorted(found)[len(found) // 2]
        return {
            "seconds": seconds,
            "examples_per_second": batch / seconds,
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
            "compile_seconds": compile_seconds,
            "loss": loss.item(),
        }

    return take

"""From records to batches on the mesh.

Batch `i` is a pure function of (seed, i): which records (a new permutation every epoch), which caption, in which order.
So the position of a run is one integer, and it means the same on any number of hosts: each reads its own rows of the
global batch. Host work (reading, decoding, tokenising) runs in threads ahead of the step; augmentation is the
devices' (`augment.py`).
"""

from __future__ import annotations

import collections
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from jaxvl.config import check
from jaxvl.data.augment import Augment
from jaxvl.data.captions import DRAWS, CaptionConfig, Texts
from jaxvl.data.corpora import CORPORA
from jaxvl.data.preprocess import crop_box, decode, fit, open_picture
from jaxvl.data.records import BadRecord, DataError
from jaxvl.data.tokenizers import Tokenizer
from jaxvl.sharding.mesh import batch_sharding

KNOWN_TEXTS = 200_000  # token rows kept so that a caption is tokenised once
REPLACEMENTS = 100  # bad records in a row for one row of a batch
# Fields of `DataConfig` that say what is in a batch, not how it looks: the compiled step is the same whatever they are.
HOST_ONLY = frozenset(
    ("corpus", "split", "captions", "crop", "crop_ratio", "shuffle", "threads", "prefetch", "cache_mb", "error_budget", "error_minimum")
)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Data of one task.

    Attributes:
      corpus: by name, with its options.
      split: which of its splits.
      batch: rows B of the global batch.
      image_size: side S in pixels.
      text_length: tokens T.
      captions: which caption a row gets.
      augment: what is done to training pictures, on the devices.
      crop: smallest and largest share of a picture's area that is kept, a random part of it, cut on the host before
        scaling (0.08, 1.0 for photos as in SimCLR); (1, 1): the centre square.
      crop_ratio: smallest and largest width / height of such a part.
      shuffle: a new permutation every epoch; False: the order of the file.
      threads: for reading and decoding.
      prefetch: batches made ahead.
      cache_mb: decoded pictures kept in memory, so that a small corpus is decoded once; with `crop` they are kept whole.
      error_budget: share of bad records that ends the run, once `error_minimum` have been met.
      error_minimum: see `error_budget`.
    """

    corpus: Annotated[Any, CORPORA]
    split: str
    batch: int
    image_size: int = 224
    text_length: int = 64
    captions: CaptionConfig = CaptionConfig()
    augment: Augment = Augment()
    crop: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    shuffle: bool = True
    threads: int = 4
    prefetch: int = 4
    cache_mb: int = 1024
    error_budget: float = 0.01
    error_minimum: int = 10

    def __post_init__(self):
        for name in ("batch", "image_size", "threads", "prefetch", "error_minimum"):
            check(getattr(self, name) >= 1, name, f"{getattr(self, name)!r} must be >= 1")
        check(self.text_length >= 3, "text_length", f"{self.text_length!r} must be >= 3 tokens")
        check(self.cache_mb >= 0, "cache_mb", f"{self.cache_mb!r} must be >= 0 MB")
        check(0 < self.crop[0] <= self.crop[1] <= 1, "crop", f"{self.crop!r} must be a smallest and a largest share in (0, 1]")
        check(
            0 < self.crop_ratio[0] <= self.crop_ratio[1],
            "crop_ratio",
            f"{self.crop_ratio!r} must be a smallest and a largest width / height",
        )
        check(0 <= self.error_budget <= 1, "error_budget", f"{self.error_budget!r} is a share; must be in [0, 1]")

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Of the global batch: image uint8 [B, S, S, 4], text int32 [B, T], id int32 [B], index int32 [B]."""
        b, s = self.batch, self.image_size
        shapes = dict(image=((b, s, s, 4), np.uint8), text=((b, self.text_length), np.int32), id=((b,), np.int32), index=((b,), np.int32))
        return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


# Picture (scaled, or whole where a part is cut out of it for each row), texts, label.
Row = tuple[np.ndarray | Image.Image, Texts, int]


class Batches:
    """Random access to the batches of a source, as this host's rows: numpy, nothing of jax.

    Args:
      rows: positions within the global batch that this host fills (all of them on one host).
    """

    def __init__(self, config: DataConfig, source: Any, tokenizer: Tokenizer, *, seed: int, rows: np.ndarray | None = None):
        self.config, self._source, self._tokenizer, self._seed = config, source, tokenizer, seed
        self.rows = np.arange(config.batch) if rows is None else np.asarray(rows)
        if len(source) == 0:
            raise DataError(f"split {config.split!r} has no records")
        order = grain.MapDataset.range(len(source))
        self._order = (order.shuffle(seed=seed) if config.shuffle else order).repeat()
        self.skipped: collections.Counter[str] = collections.Counter()
        self._seen, self._lock = 0, threading.Lock()
        self._cache: dict[int, Row] = {}
        self._cache_left = config.cache_mb * 2**20
        self._tokens: dict[str, np.ndarray] = {}

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        """Rows of batch `i`: image uint8 [b, S, S, 4], text int32 [b, T], id int32 [b], index int32 [b].

        Raises DataError once the error budget is exceeded.
        """
        config = self.config
        # One counter-based generator per batch, drawn for the global batch: the same whoever asks for which rows.
        draws = np.random.Generator(np.random.Philox(key=[self._seed, i])).random((config.batch, 4 + DRAWS))[self.rows]
        positions = i * config.batch + self.rows
        image = np.empty((len(self.rows), config.image_size, config.image_size, 4), np.uint8)
        label, texts = np.empty(len(self.rows), np.int32), []
        for row, position in enumerate(positions.tolist()):
            picture, sources, label[row] = self._row(position)
            pixels = picture if isinstance(picture, np.ndarray) else self._cut(picture, draws[row, :4])
            image[row, ..., : pixels.shape[-1]] = pixels
            if pixels.shape[-1] == 3:
                image[row, ..., 3] = 255
            texts.append(config.captions.choose(sources, draws[row, 4:].tolist()))
        index = (positions % 2**31).astype(np.int32)
        return {"image": image, "text": self._encode(texts), "id": label, "index": index}

    def _row(self, position: int) -> Row:
        """The record at a position of the stream, or the next good one after it."""
        record = self._order[position]
        with self._lock:
            self._seen += 1
        for _ in range(REPLACEMENTS):
            try:
                return self._load(record)
            except BadRecord as error:
                self._count(error)
                record = (record + 1) % len(self._source)
        raise DataError(f"split {self.config.split!r}: {REPLACEMENTS} bad records in a row ({self._causes()})")

    def _load(self, record: int) -> Row:
        kept = self._cache.get(record)
        if kept is not None:
            return kept
        data = self._source[record]
        if self.config.crop == (1.0, 1.0):
            picture = decode(data["image"], self.config.image_size)
            size = picture.nbytes
        else:
            picture = open_picture(data["image"])
            size = picture.width * picture.height * len(picture.getbands())
        row = picture, self.config.captions.texts(data), data["label"]
        with self._lock:
            if record not in self._cache and self._cache_left >= size:
                self._cache_left -= size
                self._cache[record] = row
        return row

    def _cut(self, picture: Image.Image, draws: np.ndarray) -> np.ndarray:
        config = self.config
        return fit(picture, config.image_size, crop_box(*picture.size, config.crop, config.crop_ratio, draws.tolist()))

    def _encode(self, texts: list[str]) -> np.ndarray:
        known = self._tokens  # of this moment: another thread may put a fresh one in its place
        new = [t for t in dict.fromkeys(texts) if t not in known]
        if new:
            rows = self._tokenizer.encode(new, self.config.text_length)
            if len(known) + len(new) > KNOWN_TEXTS:
                known = self._tokens = {t: known[t] for t in texts if t in known}
            known.update(zip(new, rows))
        return np.stack([known[t] for t in texts])

    def _count(self, error: BadRecord) -> None:
        config = self.config
        with self._lock:
            self.skipped[error.cause] += 1
            bad = self.skipped.total()
        if bad >= config.error_minimum and bad > config.error_budget * self._seen:
            raise DataError(
                f"split {config.split!r} of {getattr(self._source, 'path', 'the corpus')}: {bad} of {self._seen} records are bad "
                f"({self._causes()}), more than error_budget {config.error_budget:g} allows; the last: {error}"
            )

    def _causes(self) -> str:
        return ", ".join(f"{cause}: {n}" for cause, n in self.skipped.most_common())


class Feed(Iterator):
    """Global batches on the mesh, made ahead of the step.

    Attributes:
      position: index of the next batch; the data position of a checkpoint.
      waited: seconds that `next` has waited for a batch.
      skipped: cause -> bad records met so far (by the batches made ahead as well).
      rows: B.
      shapes: name -> ShapeDtypeStruct of the global batch.
    """

    def __init__(self, config: DataConfig, corpus: Any, tokenizer: Tokenizer, *, seed: int, mesh: Mesh, start: int = 0):
        check(
            config.split in corpus.splits,
            "data.split",
            f"{config.split!r} is not a split of the corpus (splits: {', '.join(corpus.splits)})",
        )
        self.rows, self.position, self.waited = config.batch, start, 0.0
        self._sharding = batch_sharding(mesh)
        shape = (config.batch,)
        mine = np.zeros(config.batch, bool)
        for index in self._sharding.addressable_devices_indices_map(shape).values():
            mine[index] = True
        self._batches = Batches(config, corpus.split(config.split), tokenizer, seed=seed, rows=np.flatnonzero(mine))
        self.shapes = config.shapes
        stream = grain.MapDataset.range(start, 2**40).map(self._batches.__getitem__)
        options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=config.prefetch)
        self._ahead = _Ahead(iter(stream.to_iter_dataset(options)), self._put)

    @property
    def skipped(self) -> dict[str, int]:
        return dict(self._batches.skipped)

    def _put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return {k: jax.make_array_from_process_local_data(self._sharding, v, self.shapes[k].shape) for k, v in batch.items()}

    def __next__(self) -> dict[str, jax.Array]:
        """Raises DataError once the error budget is exceeded."""
        began = time.perf_counter()
        batch = self._ahead.get()
        self.waited += time.perf_counter() - began
        self.position += 1
        return batch

    def close(self) -> None:
        self._ahead.close()


class _Ahead:
    """Runs an iterator in a thread, two items ahead; what it raises is raised by `get`."""

    def __init__(self, items: Iterator[Any], then: Callable[[Any], Any]):
        self._items, self._then = items, then
        self._ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(2)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jaxvl-feed", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                item = self._then(next(self._items)), None
            except BaseException as error:
                item = None, error
            while not self._closed.is_set():
                try:
                    self._ready.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if item[1] is not None:
                return

    def get(self) -> Any:
        if self._closed.is_set():
            raise ValueError("the feed is closed")
        item, error = self._ready.get()
        if error is not None:
            self._ready.put((None, error))  # whoever asks again is told again
            raise _cause(error)
        return item

    def close(self) -> None:
        self._closed.set()
        self._thread.join(timeout=10)
        closer = getattr(self._items, "close", None)
        if closer:
            closer()


def _cause(error: BaseException) -> BaseException:
    """The DataError behind an error that Grain has wrapped, else the error itself."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, DataError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return error

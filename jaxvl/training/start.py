"""What a run begins with: parameters and model state of other runs and libraries, by path."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp

from jaxvl.adapters.upcycle import dense_path, moe_configs, upcycle
from jaxvl.aliases import Arrays
from jaxvl.config import ConfigError, check, nearest, to_path
from jaxvl.data.preprocess import Preprocess
from jaxvl.data.tokenizers import Tokenizer, TokenizerConfig
from jaxvl.interop.libraries import LIBRARIES
from jaxvl.interop.mapping import ConversionError
from jaxvl.models.functional import Functional
from jaxvl.nn.embeddings import resample
from jaxvl.training.checkpoint import CheckpointError
from jaxvl.training.experiment import Experiment, StartConfig
from jaxvl.training.restore import restore_weights
from jaxvl.training.state import TrainState, start_averages

NAMED = 4  # paths that a message names


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights from elsewhere.

    Attributes:
      arrays: path -> array, of parameters and of model state.
      words: paths of the parameters that have a row or column per token of the tokenizer.
      tokenizer: None where it has none.
      tokenizer_config: what it was asked for as; None where it is of another library.
    """

    name: str
    arrays: Arrays
    words: frozenset[str]
    tokenizer: Tokenizer | None
    tokenizer_config: TokenizerConfig | None
    preprocess: Preprocess


@dataclasses.dataclass(frozen=True)
class Taken:
    """What a rule takes.

    Attributes:
      where: of the rule in the config, for messages.
      sources: several are dense models whose MLPs become experts.
      paths: of a source -> of this run's model.
    """

    where: str
    sources: tuple[Source, ...]
    paths: Mapping[str, str]

    def arrays(self, source: Source) -> Arrays:
        """Path in this run's model -> array."""
        return {ours: source.arrays[theirs] for theirs, ours in self.paths.items()}


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """The weights of `start`.

    Attributes:
      tokenizer: the one that they need, or None where they need none.
    """

    rules: tuple[Taken, ...]
    tokenizer: Tokenizer | None

    def put_into(
        self, state: TrainState, experiment: Experiment, model: Functional, shardings: TrainState
    ) -> TrainState:
        """A fresh state that begins with these weights.

        Where only this run's model has experts, each is the MLP of a source.

        Raises:
          ConfigError: a parameter that two rules cover, or none (and `fresh` does not); one that
            has no place in the model, or another shape.
        """
        places = {**shardings.params, **shardings.model_state}
        fresh = {**state.params, **state.model_state}
        found: Arrays = {}
        for rule in self.rules:
            arrays = _fitted(rule, experiment, fresh, places)
            twice = [path for path in arrays if path in found]
            check(not twice, rule.where, f"{named(twice)} is taken by a rule before already")
            found |= arrays
        uncovered = [p for p in fresh if p not in found and not re.search(experiment.fresh, p)]
        check(
            not uncovered,
            "start",
            f"covers not {len(uncovered)} of the model's {len(fresh)} parameters: "
            f"{named(uncovered)}; take them from somewhere, or name them in fresh "
            f"({experiment.fresh!r}), which are drawn",
        )
        # Copies: the run's buffers are donated to its steps.
        placed = jax.device_put(found, {path: places[path] for path in found})
        values = {**fresh, **jax.tree.map(jnp.copy, placed)}
        params = {path: values[path] for path in state.params}
        model_state = {path: values[path] for path in state.model_state}
        ema = start_averages(list(experiment.optim.averages), params, model_state)
        return dataclasses.replace(state, params=params, model_state=model_state, ema=ema)


def initial_weights(experiment: Experiment) -> InitialWeights:
    """Reads the weights of `start`.

    Raises:
      ConfigError: a source that cannot be read; a rule that takes nothing; words of several
        tokenizers, or of another than the config asks for; pictures scaled to other values than
        this run's.
    """
    read = functools.cache(read_source)
    rules = []
    for i, rule in enumerate(experiment.start):
        where = f"start[{i}]"
        try:
            sources = tuple(read(name) for name in rule.sources)
        except ConfigError as error:
            raise error.under(where) from None
        rules.append(Taken(where, sources, taken_paths(rule, sources[0].arrays, where)))
    for rule in rules:
        _check_pictures(rule, experiment)
    return InitialWeights(tuple(rules), _common_tokenizer(rules, experiment))


def read_source(name: str) -> Source:
    """The weights of a workdir, or of `LIBRARY:PATH`. Raises ConfigError."""
    library, colon, place = name.partition(":")
    if colon and library in LIBRARIES:
        other = LIBRARIES[library]
        tokenizer = None if other.HOLDS_TOKENIZER else "none"
        try:
            bundle = other.load(to_path(place, "source"), tokenizer)
        except (ConversionError, OSError) as error:
            raise ConfigError("source", f"{name!r}: {error}") from None
        model = bundle.functional()
        found = (bundle.tokenizer, None)
        return Source(name, dict(bundle.arrays), _words(model), *found, bundle.preprocess)
    workdir = place if library == "jaxvl" and colon else name
    try:
        saved = restore_weights(to_path(workdir, "source"))
    except CheckpointError as error:
        libraries = nearest(library, list(LIBRARIES)) if colon else ""
        raise ConfigError("source", f"{name!r}: {error}{libraries}") from None
    arrays = {**saved.params, **saved.model_state}
    tokenizer = (saved.tokenizer, saved.experiment.tokenizer)
    return Source(name, arrays, _words(saved.model), *tokenizer, saved.experiment.preprocess)


def taken_paths(rule: StartConfig, paths: Iterable[str], where: str) -> dict[str, str]:
    """Path in the source -> path in this run's model, of what the rule takes.

    Raises ConfigError where it takes nothing, or something without the prefix `cut`.
    """
    paths = list(paths)
    taken = [path for path in paths if re.search(rule.take, path)]
    check(
        bool(taken),
        f"{where}.take",
        f"{rule.take!r} takes none of the {len(paths)} parameters of {rule.sources[0]}, such as "
        f"{named(paths)}",
    )
    other = [path for path in taken if not path.startswith(rule.cut)]
    check(not other, f"{where}.cut", f"{rule.cut!r} is not what {named(other)} begins with")
    return {path: rule.put + path.removeprefix(rule.cut) for path in taken}


def named(paths: Sequence[str]) -> str:
    """A few of them."""
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return ", ".join(paths[:NAMED]) + more


def _words(model: Functional) -> frozenset[str]:
    return frozenset(path for path, axes in model.axes.items() if axes and "vocab" in axes)


def _fitted(rule: Taken, experiment: Experiment, fresh: Arrays, places: Mapping) -> Arrays:
    """The arrays of a rule as this run's model has them, by path. Raises ConfigError."""
    arrays = rule.arrays(rule.sources[0])
    # Parameters that a dense source has the layers or the MLP of.
    sparse = {
        path: fresh[path]
        for path in fresh
        if dense_path(path) in arrays or ("/moe/router/" in path and _routes(path, arrays))
    }
    from_dense = any("/moe/" in path for path in sparse) and not any("/moe/" in p for p in arrays)
    if from_dense:
        return _upcycled(rule, experiment, sparse, places)
    check(
        len(rule.sources) == 1,
        f"{rule.where}.source",
        f"{len(rule.sources)} sources become the experts of a model, which has none there; must be "
        "one",
    )
    lost = sorted(path for path in arrays if path not in fresh)
    hint = " (python -m jaxvl.convert merges adapters)" if "/adapter/" in "".join(lost) else ""
    check(
        not lost,
        f"{rule.where}.take",
        f"takes {len(lost)} parameters that have no place in this run's model: {named(lost)}; must "
        f"leave them{hint}",
    )
    arrays = {path: _positions(path, a, fresh) for path, a in arrays.items()}
    for path, array in arrays.items():
        here = tuple(fresh[path].shape)
        there = tuple(array.shape)
        check(
            here == there,
            rule.where,
            f"{path} is {here} in this run's model and {there} in that of the weights; "
            "model = presets.saved(workdir), with its image_size and text_length, is the same",
        )
    return arrays


def _routes(path: str, arrays: Arrays) -> bool:
    """Whether a router's layers are upcycled from these dense ones."""
    mlp = dense_path(path.partition("/moe/router/")[0] + "/mlp/")
    return any(p.startswith(mlp) for p in arrays)


def _upcycled(rule: Taken, experiment: Experiment, fresh: Arrays, places: Mapping) -> Arrays:
    """The sources for a model with experts; its routers are drawn."""
    kinds = moe_configs(experiment.model)
    check(
        len(kinds) == 1,
        rule.where,
        f"the model has {len(kinds)} kinds of experts; must be one to start from dense weights",
    )
    convert = jax.jit(
        lambda dense, fresh: upcycle(dense, fresh, kinds[0]),
        out_shardings={path: places[path] for path in fresh},
    )
    try:
        return convert([rule.arrays(source) for source in rule.sources], fresh)
    except KeyError as error:
        raise ConfigError(f"{rule.where}.source", f"a source lacks {error}") from None
    except ValueError as error:
        raise ConfigError(rule.where, str(error)) from None


def _positions(path: str, array: jax.Array, fresh: Arrays) -> jax.Array:
    """A ViT's table of positions for the image size of this run; any other array as it is."""
    stem, _, name = path.rpartition("positions")
    if name or f"{stem}patches/kernel" not in fresh or array.ndim != 2:
        return array
    return resample(jnp.asarray(array), len(fresh[path]))


def _check_pictures(rule: Taken, experiment: Experiment) -> None:
    """Raises ConfigError where weights that read pictures had others than this run's."""
    beside = re.compile(r"text/|log_scale$|logit_bias$")
    if all(beside.match(path) for path in rule.paths):
        return
    for source in rule.sources:
        for field in ("mean", "std"):
            theirs, mine = (getattr(p, field) for p in (source.preprocess, experiment.preprocess))
            check(
                theirs == mine,
                f"preprocess.{field}",
                f"{mine!r} is not what the weights of {source.name} were trained with; must be "
                f"{theirs!r}",
            )


def _common_tokenizer(rules: Sequence[Taken], experiment: Experiment) -> Tokenizer | None:
    """The tokenizer of all sources of which words are taken. Raises ConfigError."""
    sources = [
        source
        for rule in rules
        for source in rule.sources
        if any(path in source.words for path in rule.paths)
    ]
    if not sources:
        return None
    first = sources[0]
    check(
        first.tokenizer is not None and first.tokenizer.kind != "none",
        "start",
        f"takes words of {first.name}, which has no tokenizer",
    )
    for other in sources[1:]:
        same = other.tokenizer is not None and (
            other.tokenizer.to_json() == first.tokenizer.to_json()
        )
        problem = f"takes words of {first.name} and {other.name}, whose tokenizers differ"
        check(same, "start", f"{problem}; must be of one")
    asked = experiment.tokenizer
    check(
        asked in (TokenizerConfig(), first.tokenizer_config),
        "tokenizer",
        f"{asked} is not that of the weights of start ({first.tokenizer_config or first.name}), "
        "which this run uses; leave it out",
    )
    return first.tokenizer

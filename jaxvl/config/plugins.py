"""A user's own files and modules, which may register anything that a config can name.

`plugins=("my_objective.py", "my_package.module")` in a config: they are imported before the rest of
it is read. A file is one that ends in `.py`, beside the config file or in the current folder; all
else is a module on the Python path or beside the config file. The same file is imported once.

A checkpoint keeps name, place, hash and text of each. Whoever reads the checkpoint, from whatever
folder, imports the file from its place. One that has changed since is used as it is now, with a
warning that names both hashes. One that is gone is an error that says what to do: name its new
place, or `plugins=recorded`, which runs the text that the checkpoint holds. Text from a checkpoint
is never run unasked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import pathlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from jaxvl.aliases import Leaf, Node
from jaxvl.config.errors import ConfigError, check, describe_exception, shown
from jaxvl.config.running import run_file

RECORDED = "recorded"  # instead of a file: the texts that the checkpoint holds
KEY = "plugins"
HOW = (
    "--config.plugins=PLACE for jaxvl.train and jaxvl.evaluate, --plugins=PLACE for "
    "jaxvl.caption and jaxvl.convert"
)


class PluginWarning(UserWarning):
    """A plugin is not what a checkpoint was made with."""


@dataclasses.dataclass(frozen=True)
class Plugin:
    """One that is loaded.

    Attributes:
      name: file name, or dotted name of a module.
      file: where it lies, an absolute path.
      sha256: of its text.
      source: its text.
    """

    name: str
    file: str
    sha256: str
    source: str = dataclasses.field(repr=False)


_loaded: dict[str, Plugin] = {}  # by file


def load_plugins(entries: Leaf) -> tuple[Plugin, ...]:
    """Imports what a config names.

    Args:
      entries: a text or a sequence of texts (files and modules, also with commas between), of
        records of a checkpoint, or of plugins.

    Raises:
      ConfigError: there is no such file or module, it cannot be imported, or it registers a name
        that another file has.
    """
    if isinstance(entries, (str, Mapping, Plugin)) or entries is None:
        entries = (entries,) if entries else ()
    check(
        isinstance(entries, Sequence), KEY, f"{shown(entries)} must be a list of files and modules"
    )
    plugins: list[Plugin] = []
    records = []
    for entry in entries:
        if isinstance(entry, Mapping):
            records.append(entry)
        elif isinstance(entry, Plugin):
            plugins.append(entry)
        else:
            check(isinstance(entry, str), KEY, f"{shown(entry)} must be a file or a module")
            plugins += [_load(name.strip()) for name in entry.split(",")]
    before = dict(_loaded)
    return tuple(
        dict.fromkeys(
            [*plugins, *(_recall(record, before, as_recorded=False) for record in records)]
        )
    )


def recall_plugins(records: Sequence[Node], given: Leaf = None) -> tuple[Plugin, ...]:
    """Imports what a checkpoint has recorded.

    Args:
      records: `to_dict` of plugins.
      given: what the user names instead or besides, as in `load_plugins`, or `recorded`. One of the
        same name as a record, here or loaded before, stands for it.

    Raises:
      ConfigError: as `load_plugins`; one that is gone and not named by `given`.
    """
    as_recorded = given == RECORDED
    more = () if as_recorded else load_plugins(given)
    before = dict(_loaded)
    return tuple(
        dict.fromkeys([*more, *(_recall(record, before, as_recorded) for record in records)])
    )


def loaded_plugins() -> tuple[Plugin, ...]:
    """All that this process has imported."""
    return tuple(_loaded.values())


def load_again(plugins: Sequence[Plugin]) -> None:
    """Imports what another process on this machine has loaded: files as they were when it read
    them. Raises ConfigError."""
    for plugin in plugins:
        if _is_file_name(plugin.name):
            _load_text(plugin.name, plugin.file, plugin.source.encode())
        else:
            _load_module(plugin.name)


def plugin_changes(records: Sequence[Node], plugins: Sequence[Plugin]) -> list[str]:
    """A sentence for each plugin of a run that is not what its checkpoint has recorded."""
    sentences = []
    now = {plugin.name: plugin for plugin in plugins}
    for record in records:
        plugin = now.get(record["name"])
        if plugin is not None and plugin.sha256 != record["sha256"]:
            sentences.append(_changed(record, plugin))
    return sentences


def beside(folder: pathlib.Path, entries: Leaf) -> Leaf:
    """The plugins of a config file in `folder`, files by absolute path; modules there become
    importable.

    Raises ConfigError for a file that is neither there nor in the current folder.
    """
    if isinstance(entries, str):
        entries = entries.split(",")
    if not isinstance(entries, Sequence):
        return entries  # `load_plugins` says what is wrong
    return tuple(_place(entry, folder) if isinstance(entry, str) else entry for entry in entries)


def _place(name: str, folder: pathlib.Path) -> str:
    """A file's absolute path; a module's name as it is."""
    name = name.strip()
    folder = folder.resolve()
    if _is_file_name(name):
        tried = list(
            dict.fromkeys(
                root / pathlib.Path(name).expanduser() for root in (folder, pathlib.Path.cwd())
            )
        )
        found = [file for file in tried if file.is_file()]
        check(
            bool(found), KEY, f"no file {shown(name)} (looked for {' and '.join(map(str, tried))})"
        )
        return str(found[0].resolve())
    top = name.partition(".")[0]
    lies_here = (folder / top).is_dir() or (folder / f"{top}.py").is_file()
    if lies_here and not _is_known(top):
        sys.path.append(str(folder))
    return name


def _is_file_name(name: str) -> bool:
    return name.endswith(".py") or "/" in name


def _is_known(top: str) -> bool:
    """Whether a module of this name can be imported."""
    try:
        return importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):
        return False


def _load(name: str) -> Plugin:
    check(bool(name), KEY, "'' must be a file or a module")
    if not _is_file_name(name):
        return _load_module(name)
    file = pathlib.Path(name).expanduser()
    try:
        check(file.is_file(), KEY, f"no file {shown(name)} (in {pathlib.Path.cwd()})")
        file = file.resolve()
        return _load_text(file.name, str(file), file.read_bytes())
    except OSError as error:
        raise ConfigError(KEY, f"{shown(name)} cannot be read: {error.strerror}") from None


def _load_text(name: str, file: str, data: bytes) -> Plugin:
    """Runs a file's text as a module of its own, unless it was run before."""
    try:
        source = importlib.util.decode_source(data)
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        raise ConfigError(
            KEY, f"{file} cannot be imported: {describe_exception(error, file)}"
        ) from None
    plugin = Plugin(name, file, _digest(source), source)
    if _loaded.get(file) == plugin:
        return plugin
    module = f"jaxvl_plugin_{pathlib.PurePath(file).stem}_{_digest(file)[:8]}"
    try:
        run_file(source, file, module, KEY)
    except ConfigError as error:
        said = error.problem if error.key == KEY else f"{file}, {error}"
        raise ConfigError(KEY, f"cannot import {said}") from error
    _loaded[file] = plugin
    return plugin


def _load_module(name: str) -> Plugin:
    try:
        module = importlib.import_module(name)
        source = inspect.getsource(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                KEY, f"no module {shown(name)} on the Python path; a file's name ends in .py"
            ) from None
        raise ConfigError(KEY, f"cannot import {name}: {describe_exception(error, '')}") from error
    except (Exception, SystemExit) as error:
        file = getattr(importlib.util.find_spec(name.partition(".")[0]), "origin", None) or name
        raise ConfigError(
            KEY, f"cannot import {name} ({file}): {describe_exception(error, file)}"
        ) from error
    plugin = Plugin(name, str(pathlib.Path(module.__file__).resolve()), _digest(source), source)
    _loaded[plugin.file] = plugin
    return plugin


def _recall(record: Mapping[str, Any], before: Mapping[str, Plugin], as_recorded: bool) -> Plugin:
    """The plugin of a record of a checkpoint.

    Args:
      before: what the user has named in this process, by file.
      as_recorded: whether the recorded text is run.
    """
    for key in ("name", "file", "sha256", "source"):
        check(isinstance(record.get(key), str), KEY, f"a record of the checkpoint has no {key!r}")
    name = record["name"]
    file = record["file"]
    alike = [plugin for plugin in before.values() if plugin.sha256 == record["sha256"]]
    if alike:
        return alike[0]
    if as_recorded:
        return _load_text(name, file, record["source"].encode())
    named = before.get(file) or next(
        (plugin for plugin in before.values() if plugin.name == name), None
    )
    plugin = named or _find(name, file)
    if plugin.sha256 != record["sha256"]:
        warnings.warn(_changed(record, plugin), PluginWarning, stacklevel=2)
    return plugin


def _find(name: str, file: str) -> Plugin:
    """A recorded plugin where it lay. Raises ConfigError where it is no more."""
    check(
        pathlib.Path(file).is_file(),
        KEY,
        f"{name!r} is not at {file} any more, where the checkpoint has recorded it; say "
        f"where it is "
        f"({HOW}), or {RECORDED!r} instead of a place to run the text that the checkpoint holds",
    )
    if _is_file_name(name):
        return _load(file)
    parts = len(name.split(".")) + (pathlib.Path(file).name == "__init__.py")
    root = str(pathlib.Path(*pathlib.Path(file).parts[:-parts]))
    if not _is_known(name.partition(".")[0]):
        sys.path.append(root)
    return _load_module(name)


def _changed(record: Mapping[str, Any], plugin: Plugin) -> str:
    then = record["sha256"][:12]
    now = plugin.sha256[:12]
    moved = "" if record["file"] == plugin.file else f" (then {record['file']})"
    return (
        f"plugin {plugin.file}{moved} has changed since the checkpoint was written: sha256 {then} "
        f"then, {now} now; it is used as it is now"
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

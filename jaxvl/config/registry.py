"""Components by name, found by looking into a package, imported when they are chosen."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.machinery
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from jaxvl.config.errors import ConfigError, check, describe_exception, nearest


class Registry(Mapping):
    """Names of one kind of component -> the frozen dataclass that configures it.

    Registering is one decorator above the dataclass, `@OBJECTIVES.register("clip")`. The modules of
    `package` are not imported to find it: their source is read, and a module is imported when a
    component of its is looked up. So a module that needs a library that is not installed is in
    nobody's way, and one that registers nothing is left alone. A module whose source is not there
    (bytecode only), or that registers by other words than these, is imported at the first look.

    Args:
      kind: what the components are, for messages.
      package: whose modules register them; None: they are registered by whoever is imported.
    """

    __hash__ = object.__hash__  # so that a field may be `Annotated[Any, REGISTRY] | None`

    def __init__(self, kind: str, package: str | None = None):
        self.kind = kind
        self._package = package
        self._entries: dict[str, type] = {}
        self._files: dict[str, str] = {}
        self._modules: dict[str, list[_Module]] | None = None
        self._unreadable: dict[str, str] = {}

    __eq__ = (
        object.__eq__
    )  # by identity: an annotation with a registry stands in unions, whose members are hashed
    __hash__ = object.__hash__

    def register(self, name: str) -> Callable[[type], type]:
        """Class decorator. Raises ValueError if `name` is taken by another class, TypeError if it
        decorates no dataclass."""

        def add(cls: type) -> type:
            if not dataclasses.is_dataclass(cls):
                raise TypeError(
                    f"{self.kind} {name!r}: {cls.__qualname__} must be a (frozen) dataclass"
                )
            file = getattr(sys.modules.get(cls.__module__), "__file__", None) or cls.__module__
            other = self._other_owner(name, cls)
            if other == file and self._entries[name].__module__ != cls.__module__:
                raise ValueError(
                    f"{self.kind} {name!r}: {file} is loaded twice, as a plugin and by an import; "
                    f"name it in `plugins` alone, or keep what others import in a package"
                )
            if other is not None:
                raise ValueError(
                    f"{self.kind} {name!r} is already registered by {other}; {file} must "
                    f"choose another name"
                )
            self._entries[name] = cls
            self._files[name] = file
            cls.registered_name = name
            return cls

        return add

    def _other_owner(self, name: str, cls: type) -> str | None:
        """The file that has `name` already, unless it is that of `cls`."""
        old = self._entries.get(name)
        if old is not None:
            same = (old.__module__, old.__qualname__) == (cls.__module__, cls.__qualname__)
            return None if same else self._files[name]
        if self._package is None or cls.__module__.startswith(f"{self._package}."):
            return None  # two modules of the package with one name are told by `lookup`
        owners = self._found().get(name, [])
        return owners[0].file if owners else None

    def _found(self) -> dict[str, list[_Module]]:
        """Name -> modules of the package that register it, by their source."""
        if self._modules is None:
            self._modules = {}
            for module in _modules_of(self._package) if self._package else ():
                self._look_into(module)
        return self._modules

    def _look_into(self, module: _Module) -> None:
        package = importlib.import_module(self._package)
        variable = next(key for key, value in vars(package).items() if value is self)
        others = [
            key
            for key, value in vars(package).items()
            if isinstance(value, Registry) and value is not self
        ]
        try:
            names = _registered(module.source(), variable, others)
        except (SyntaxError, ValueError) as error:
            self._unreadable[module.file] = describe_exception(error, "<unknown>")
            return
        if names is None:
            try:
                importlib.import_module(module.name)
            except Exception as error:
                self._unreadable[module.file] = describe_exception(error, module.file)
            return
        for name in names:
            self._modules.setdefault(name, []).append(module)

    def __getitem__(self, name: str) -> type:
        owners = self._found().get(name, ())
        if name not in self._entries and owners:
            importlib.import_module(owners[0].name)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._found() or name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._found(), *self._entries}))

    def __len__(self) -> int:
        return len({*self._found(), *self._entries})

    def lookup(self, name: object, path: str) -> type:
        """Like `[]`, but raises a `ConfigError` at `path` that says what is known, or why a
        component cannot be loaded."""
        if not isinstance(name, str) or name not in self:
            known = list(self)
            unread = "".join(
                f"; {file} could not be read: {why}" for file, why in self._unreadable.items()
            )
            raise ConfigError(
                path,
                f"{name!r} is not a known {self.kind}{nearest(name, known)} (known: "
                f"{', '.join(known)}){unread}",
            )
        owners = self._found().get(name, [])
        check(
            len(owners) < 2,
            path,
            f"the {self.kind} {name!r} is registered by two files: "
            f"{' and '.join(m.file for m in owners[:2])}",
        )
        try:
            return self[name]
        except ModuleNotFoundError as error:
            where = owners[0].file if owners else "?"
            raise ConfigError(
                path,
                f"the {self.kind} {name!r} needs the package {error.name!r}, which is not "
                f"installed ({where})",
            ) from error
        except Exception as error:
            where = owners[0].file if owners else "?"
            why = describe_exception(error, where)
            raise ConfigError(
                path, f"the {self.kind} {name!r} cannot be loaded: {where}, {why}"
            ) from error


# --------------------------------------------------------------------------------------------------
# Looking into modules without importing them


class _Module:
    """A module that need not be imported to be read; from a folder or a zip file.

    Args:
      spec: of the module, as a finder gives it.
    """

    def __init__(self, spec: importlib.machinery.ModuleSpec):
        self.name = spec.name
        self._loader = spec.loader
        self.file = spec.origin or spec.name

    def source(self) -> str | None:
        """Its text, or None where there is only bytecode. Raises SyntaxError for a text that is in
        no encoding."""
        read = getattr(self._loader, "get_source", None)
        try:
            return read(self.name) if read is not None else None
        except (ImportError, OSError):
            return None


def _modules_of(package: str) -> Iterator[_Module]:
    """All modules under a package, at any depth; none is imported but the package itself."""
    folders = [(list(importlib.import_module(package).__path__), package)]
    while folders:
        paths, parent = folders.pop()
        for found in pkgutil.iter_modules(paths, f"{parent}."):
            spec = found.module_finder.find_spec(found.name)
            if spec is None or spec.loader is None:
                continue
            yield _Module(spec)
            if spec.submodule_search_locations:
                folders.append((list(spec.submodule_search_locations), found.name))


def _registered(source: str | None, variable: str, others: Sequence[str]) -> list[str] | None:
    """Names that a module registers by `variable.register("NAME")`; None where only importing it
    can tell.

    Args:
      others: variables of other registries, whose names are not meant.

    Raises:
      SyntaxError, ValueError: a text that is no Python.
    """
    if source is None:
        return None
    if ".register(" not in source:
        return []
    names = []
    for node in ast.walk(ast.parse(source)):
        if not (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "register"
        ):
            continue
        owner = node.func.value
        called = getattr(owner, "id", None) or getattr(owner, "attr", None)
        if called in others:
            continue
        argument = node.args[0] if len(node.args) == 1 and not node.keywords else None
        if (
            called != variable
            or not isinstance(argument, ast.Constant)
            or not isinstance(argument.value, str)
        ):
            return None
        names.append(argument.value)
    return names

"""Configurations: frozen dataclasses that are also JSON objects and command lines.

A hyper-parameter is written once, as a field of the dataclass beside the model that reads it. Its JSON
key, its flag, its default and its help text all come from that field, so a checkpoint, a command line
and the code cannot disagree.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from dalle3.errors import ConfigError

T = TypeVar("T")


def option(default: Any = MISSING, *, help: str) -> Any:
    """A dataclass field with its help text."""
    return dataclasses.field(default=default, metadata={"help": help})


def to_dict(config: Any) -> dict[str, Any]:
    """The JSON object of `config`; `from_dict` is its inverse."""
    return {field.name: _encode(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_dict(cls: type[T], data: dict[str, Any]) -> T:
    """Builds `cls` from its JSON object.

    Raises:
        ConfigError: a key is unknown, a key is missing, or a value has the wrong type.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{cls.__name__} is {data!r}; it must be an object")
    fields = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if unknown := sorted(data.keys() - set(fields)):
        raise ConfigError(f"{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(fields)}")
    if missing := _missing(cls, data):
        raise ConfigError(f"{cls.__name__} needs {', '.join(missing)}")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _decode(hints[name], value, f"{cls.__name__}.{name}") for name, value in data.items()})


def add_arguments(parser: argparse.ArgumentParser, cls: type, *, title: str) -> None:
    """Gives `parser` one flag for each field of `cls`; a flag not given leaves no trace in the namespace.

    A configuration within has no flag: it comes from files.
    """
    group, hints, described = parser.add_argument_group(title), typing.get_type_hints(cls), _attributes(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(_strip_optional(hints[field.name])):
            continue
        kwargs: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": _help(field, described)}
        group.add_argument(f"--{field.name}", **kwargs, **_parsing(_strip_optional(hints[field.name])))


def from_args(cls: type[T], args: argparse.Namespace, *, base: dict[str, Any] | None = None) -> T:
    """Builds `cls` from the flags that were given, over the values of `base` (a config file).

    Raises:
        ConfigError: a flag without a default was not given, or as `from_dict`.
    """
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    given = {name: _encode(getattr(args, name)) for name in names if hasattr(args, name)}
    data = {**(base or {}), **given}
    if missing := _missing(cls, data):
        raise ConfigError(f"{', '.join(f'--{name}' for name in missing)} must be given; see --help")
    return from_dict(cls, data)


def _missing(cls: type, data: dict[str, Any]) -> list[str]:
    fields = dataclasses.fields(cls)
    required = (field.name for field in fields if field.default is MISSING and field.default_factory is MISSING)
    return [name for name in required if name not in data]


def _parsing(hint: Any) -> dict[str, Any]:
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if get_origin(hint) is tuple:
        return {"type": _list_of(get_args(hint)[0]), "metavar": "A,B"}
    return {"type": hint}


def _list_of(item: Any) -> Callable[[str], tuple]:
    def read(text: str) -> tuple:
        return _split(text, item)

    read.__name__ = f"list of {getattr(item, '__name__', item)}"  # as argparse calls it where a value is none
    return read


def _split(text: str, item: Any) -> tuple:
    if get_origin(item) is tuple:
        return tuple(_split(part, get_args(item)[0]) for part in text.split(";"))
    return tuple(item(part.strip()) for part in text.split(","))


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _decode(hint: Any, value: Any, where: str) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        hint = _strip_optional(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value)  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        return _decode_tuple(hint, value, where)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ConfigError(f"{where} is {value!r}; it may be {', '.join(map(repr, get_args(hint)))}")
        return value
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} is {value!r}; it must be {hint.__name__}")
    return value


def _decode_tuple(hint: Any, value: Any, where: str) -> tuple:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where} is {value!r}; it must be a list")
    return tuple(_decode(get_args(hint)[0], item, where) for item in value)


def _strip_optional(hint: Any) -> Any:
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    return next(option for option in get_args(hint) if option is not type(None))


def _help(field: dataclasses.Field, described: dict[str, str]) -> str:
    text = field.metadata.get("help", described.get(field.name, "")).replace("%", "%%")
    return text if field.default in (MISSING, None, ()) else f"{text} (default: {field.default})"


def _attributes(cls: type) -> dict[str, str]:
    """What the docstring of a dataclass says of its fields: those of `diffusion` know nothing of flags."""
    _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()).rstrip(".") for name, text in entries}

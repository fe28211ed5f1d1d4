# SPDX-License-Identifier: Apache-2.0
"""Frozen dataclasses to and from plain mappings (YAML, JSON); unknown keys and wrong types are errors."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from vmloc_ros.core.errors import ConfigError

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Build dataclass ``cls`` (nested ones too) from a mapping.

    A dataclass whose fields' types depend on the values has a class method ``field_types(values)`` that returns these
    types by name.

    Args:
        cls: a dataclass type; its own ``__post_init__`` may check ranges and raise ConfigError or ValueError.
        values: keys are field names; missing keys take the field's default.
        where: name of the mapping in messages, such as a file or a section.

    Raises:
        ConfigError: a key is unknown, or a value is missing, of the wrong type or out of range.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected a mapping of {cls.__name__} settings, got {values!r}")
    hints = typing.get_type_hints(cls)
    hints |= getattr(cls, "field_types", lambda values: {})(values)
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(str(key) for key in values if key not in known)
    if unknown:
        raise ConfigError(f"{where}: unknown key {', '.join(unknown)}; known keys: {', '.join(sorted(known))}")
    arguments = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()}
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def to_mapping(config: Any) -> dict[str, Any]:
    """Plain dictionaries, lists and scalars of a dataclass; inverse of :func:`from_mapping`."""
    return typing.cast(dict[str, Any], _plain(dataclasses.asdict(config)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        choices = [choice for choice in arguments if choice is not type(None)]
        return _first_that_fits(choices, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{where}: expected one of {', '.join(map(str, arguments))}, got {value!r}")
        return value
    if origin is tuple:
        return _convert_tuple(arguments, value, where)
    if origin is dict:
        hint = dict  # free-form: contents are not checked here
    if dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, where)  # type: ignore[arg-type]
    # YAML reads 1e-4 as a string and 1 as an int; bool is an int in Python but never meant as a number.
    if hint is float and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if math.isnan(number):  # NaN passes every check of a range
            raise ConfigError(f"{where}: expected a number, got {value!r}")
        return number
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def _convert_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where}: expected a list, got {value!r}")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise ConfigError(f"{where}: expected {len(arguments)} values, got {len(value)}: {value!r}")
    return tuple(
        _convert(hint, item, f"{where}[{i}]") for i, (hint, item) in enumerate(zip(arguments, value, strict=True))
    )


def _first_that_fits(choices: list[Any], value: Any, where: str) -> Any:
    problems = []
    for choice in choices:
        try:
            return _convert(choice, value, where)
        except ConfigError as error:
            problems.append(str(error))
    raise ConfigError("; or ".join(problems))

"""A constructor's signature as the schema of its settings: names, presence, types."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from .config import check_keys
from .nearest import did_you_mean


def check_settings(
    function: Callable[..., Any],
    given: Mapping[str, Any],
    where: str,
    hidden: Collection[str] = (),
    key_of: Callable[[str], str] = str,
) -> None:
    """Refuse settings that a function would not understand, without calling it.

    Args:
        function: a function, or a class; one that takes `**settings` hands them to its parent.
        given: key → value, as the config writes it.
        where: the place of the settings in the config, for the message.
        hidden: arguments that no config can give.
        key_of: argument name → the key under which a config gives it.

    Raises:
        ValueError: naming the key, and the nearest valid one, or the type that is expected, or all that is missing.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} is {given!r}; expected keys and values")
    parameters = {key_of(name): p for name, p in _parameters(function).items() if name not in hidden}
    check_keys(given, parameters, where)
    for key, value in given.items():
        annotation = parameters[key].annotation
        if not _fits(value, annotation):
            valid = get_args(annotation) if get_origin(annotation) is Literal else ()
            hint = did_you_mean(value, valid, quoted=True)
            raise ValueError(f"{where}.{key} is {value!r}; {hint}expected {inspect.formatannotation(annotation)}")
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in given]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; valid: {', '.join(parameters)}")


def check_name(name: Any, valid: Collection[str], where: str) -> None:
    """Refuse a name that is not one of `valid`; the message has the nearest."""
    if not isinstance(name, str) or name not in valid:
        hint = did_you_mean(name, valid, quoted=True)
        raise ValueError(f"{where}: unknown name {name!r}; {hint}valid: {', '.join(valid)}")


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    found: dict[str, inspect.Parameter] = {}
    for owner in inspect.getmro(function) if inspect.isclass(function) else (function,):
        parameters = inspect.signature(owner).parameters
        found |= {name: p for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            break
    return found


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value read from a file is of an annotated type; an int passes for a float, a bool for neither."""
    kind, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if kind in (Union, UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if kind is Literal:
        return value in arguments
    if kind is Sequence:
        return isinstance(value, list | tuple) and all(_fits(item, arguments[0]) for item in value)
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return kind is Any or isinstance(value, kind)

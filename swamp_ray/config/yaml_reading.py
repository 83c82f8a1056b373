"""YAML as configs use it: one rule for numbers, merges that change nothing else, every key once.

The rule, where the type of an option does not decide: ``1e-2``, ``1_000``, ``0x1F``, ``0o17`` and ``0b11`` are numbers;
``true``, ``yes`` and ``on`` are true, ``false``, ``no`` and ``off`` false; ``null``, ``~`` and nothing are null; times
such as ``12:30:00`` and dates are texts. ``017``, which YAML 1.1 reads as 15 and YAML 1.2 as 17, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from swamp_ray.errors import UserError

MAX_VALUES = 100_000
MAX_DEPTH = 50

_TAG = "tag:yaml.org,2002:"
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
_BOOL = re.compile(r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0b[01_]*[01]_*|0o[0-7_]*[0-7]_*|0x[0-9a-fA-F_]*[0-9a-fA-F]_*)"
                  rf"|{_LEADING_ZERO.pattern}")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
                    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_NULL = re.compile(r"~|null|Null|NULL|")
_MERGE = re.compile(r"<<")
_RULE = (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT), ("merge", _MERGE))


@dataclass(frozen=True)
class Scalar:
    """A value that stands in a YAML text without quotes and is no text by itself.

    Attributes:
        text: How it is written: what an option gets that wants a text.
        value: The number or truth value that it stands for.
        problem: Why it stands for no value; empty where it does.
    """

    text: str
    value: Any
    problem: str = ""


_Pairs = dict[Hashable, tuple[yaml.Node, yaml.Node]]
"""Nodes of keys and of their values, by key."""


class _Loader(yaml.SafeLoader):
    """Plain YAML with the rule of this module, in which a key stands once.

    By default the last of two sections would silently replace the first.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._keys_left = MAX_VALUES
        self._merging: list[yaml.Node] = []
        self._known: dict[int, _Pairs] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping with what it merges; the node itself stays as it is, because an alias may use it again."""
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "a mapping must stand here", node.start_mark)
        found: dict[Hashable, Any] = {}
        for key, (_, value) in self._pairs(node).items():
            found[key] = self.construct_object(value, deep=deep)
        return found

    def _pairs(self, node: yaml.MappingNode) -> _Pairs:
        """What a mapping merges, of which the first mapping wins, and then its own keys."""
        if id(node) in self._known:
            return self._known[id(node)]
        if any(node is other for other in self._merging):
            raise yaml.constructor.ConstructorError(None, None, "this mapping merges itself", node.start_mark)
        self._merging.append(node)
        own: _Pairs = {}
        merged: _Pairs | None = None
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                if merged is not None:
                    raise yaml.constructor.ConstructorError(
                        None, None, "'<<' stands here twice: merge several mappings with <<: [*a, *b]",
                        key_node.start_mark)
                merged = self._merged(value_node)
                continue
            key = self._key(key_node)
            if key in own:
                raise yaml.constructor.ConstructorError(None, None, f"{_spelled(key_node)} stands here twice",
                                                        key_node.start_mark)
            own[key] = (key_node, value_node)
        self._merging.pop()
        # A key that the mapping sets itself keeps the place of the merged one, as in plain YAML readers.
        found = {**(merged or {}), **own}
        self._known[id(node)] = found
        return found

    def _merged(self, node: yaml.Node) -> _Pairs:
        """What the mappings that ``<<`` names hold together."""
        found: _Pairs = {}
        for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(item, yaml.MappingNode):
                raise yaml.constructor.ConstructorError(None, None, "'<<' must be followed by a mapping, or a list of "
                                                        "mappings", item.start_mark)
            pairs = self._pairs(item)
            # A short text can merge the same keys so often that copying them never ends.
            self._keys_left -= len(pairs)
            if self._keys_left < 0:
                raise yaml.constructor.ConstructorError(None, None, f"merges copy more than {MAX_VALUES:,} keys",
                                                        item.start_mark)
            for key, pair in pairs.items():
                found.setdefault(key, pair)
        return found

    def _key(self, node: yaml.Node) -> Hashable:
        key = self.construct_object(node, deep=True)
        key = key.value if isinstance(key, Scalar) else key
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a text", node.start_mark)
        return key


def _spelled(node: yaml.Node) -> str:
    return repr(node.value) if isinstance(node, yaml.ScalarNode) else "this key"


def _construct_bool(_: _Loader, node: yaml.ScalarNode) -> Scalar:
    return Scalar(node.value, yaml.SafeLoader.bool_values[_word(node)])


def _word(node: yaml.ScalarNode) -> str:
    word = node.value.lower()
    if word not in yaml.SafeLoader.bool_values:  # after an explicit !!bool
        raise yaml.constructor.ConstructorError(None, None, f"{node.value!r} is neither true nor false",
                                                node.start_mark)
    return word


def _construct_int(_: _Loader, node: yaml.ScalarNode) -> Scalar:
    text = node.value
    digits = text.replace("_", "")
    try:
        if not _LEADING_ZERO.fullmatch(text):
            return Scalar(text, int(digits, 0))
        if set(digits) <= set("+-01234567") and int(digits, 8) == int(digits, 10):
            return Scalar(text, int(digits, 10))
    except ValueError as error:
        reason = f"{text[:20]!r} is no whole number" if len(text) < 1000 else str(error)
        raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark) from None
    return Scalar(text, None, "begins with 0: some readers of YAML take it for an octal number, others for a decimal "
                              "one. Write it without the 0, as 0o17 for an octal number, or in quotes for a text")


def _construct_float(_: _Loader, node: yaml.ScalarNode) -> Scalar:
    digits = node.value.replace("_", "").lower()
    # Python writes infinities and NaN without YAML's point.
    digits = re.sub(r"\.(?=inf|nan)", "", digits)
    try:
        return Scalar(node.value, float(digits))
    except ValueError:
        raise yaml.constructor.ConstructorError(None, None, f"{node.value[:20]!r} is no number",
                                                node.start_mark) from None


_Loader.yaml_implicit_resolvers = {}
for _name, _pattern in _RULE:
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"^(?:{_pattern.pattern})$"), None)
_Loader.add_constructor(f"{_TAG}bool", _construct_bool)
_Loader.add_constructor(f"{_TAG}int", _construct_int)
_Loader.add_constructor(f"{_TAG}float", _construct_float)
_Loader.add_constructor(f"{_TAG}merge", yaml.SafeLoader.construct_yaml_str)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that this module's rule, or plain YAML 1.1, would read as something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    means_more = any(pattern.fullmatch(text) for _, pattern in _RULE)
    return dumper.represent_scalar(f"{_TAG}str", text, style="'" if means_more else None)


_Dumper.add_representer(str, _represent_text)


def dump_yaml(values: Any, width: int = 110) -> str:
    """Plain values as YAML, in their order; :func:`load_yaml` and :func:`load_stored_yaml` read them back."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)


def load_yaml(text: str, problem: str, source: str) -> Any:
    """The value of a YAML text that a person wrote, in which :class:`Scalar` stands for numbers and truth values.

    Args:
        text: The YAML text.
        problem: How the error begins.
        source: Where the text comes from, for errors.

    Raises:
        UserError: It has no value, one with too many values, or one that holds itself.
    """
    return _checked(lambda: yaml.load(text, Loader=_Loader), problem, source)


def load_stored_yaml(text: str, problem: str, source: str) -> Any:
    """The plain value of a YAML text that :func:`dump_yaml`, or an earlier version by YAML 1.1, has written.

    Raises:
        UserError: It has none, or one with too many values.
    """
    return _checked(lambda: yaml.load(text, Loader=yaml.SafeLoader), problem, source)


def _checked(read: Callable[[], Any], problem: str, source: str) -> Any:
    try:
        tree = read()
    # Numbers too long to convert and dates that do not exist are ValueErrors.
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{problem}: {_reason(error)}", where=source) from error
    check_size(tree, source)
    return tree


def check_size(tree: Any, source: str) -> None:
    """Refuse values that are too many: references can stand for more than there is memory, or for themselves.

    Raises:
        UserError: There are more than `MAX_VALUES`, references counted each time, or they are nested too deep.
    """
    if _holds_itself(tree):
        raise UserError("a list or mapping holds itself", where=source, do="Write out what it should hold.")
    if _num_values(tree, MAX_VALUES, MAX_DEPTH) > MAX_VALUES:
        raise UserError(f"a config must hold at most {MAX_VALUES:,} values, nested at most {MAX_DEPTH} deep",
                        where=source)


def _items(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _holds_itself(tree: Any) -> bool:
    """Whether a list or mapping is part of itself; each is looked at once, however many references there are."""
    done: set[int] = set()
    open_: set[int] = set()
    todo: list[tuple[Any, bool]] = [(tree, False)]
    while todo:
        value, left = todo.pop()
        if left:
            open_.discard(id(value))
            done.add(id(value))
            continue
        if id(value) in open_:
            return True
        if id(value) in done or not isinstance(value, Mapping | list | tuple):
            continue
        open_.add(id(value))
        todo.append((value, True))
        todo.extend((item, False) for item in _items(value))
    return False


def _num_values(value: Any, left: int, depth: int) -> int:
    """How many values there are, references counted each time; more than ``left`` as soon as that is clear."""
    count = 1
    for item in _items(value):
        count += _num_values(item, left - count, depth - 1) if depth > 0 else left + 1
        if count > left:
            return left + 1
    return count


def _reason(error: Exception) -> str:
    """What is wrong, and in which line and column."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
    return (error.problem or error.context or "it cannot be read") + place

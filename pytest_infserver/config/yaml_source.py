"""A YAML file becomes a Tree: plain data with line and column, variables filled in, duplicates refused."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from pytest_infserver.config.tree import Origin, Origins, Path, Tree
from pytest_infserver.config.variables import hide
from pytest_infserver.errors import ConfigError

_VARIABLE = re.compile(r"\$\$\{|\$\{([^{}]*)(\}?)")
_VARIABLE_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?\Z", re.DOTALL)
_MAX_BYTES = 1_000_000
_MAX_VALUES = 100_000
_MAX_DEPTH = 50
_MERGE_TAG = "tag:yaml.org,2002:merge"
_COLLECTION_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
# No setting is a date, and a lone '=' or '<<' is a text like any other.
_TEXT_TAGS = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value", _MERGE_TAG)
# What only YAML 1.1 takes for a number: 010 would be 8, and 1:30 be 90.
_OLD_NUMBER = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)\Z")


def read_yaml(
    path: str | os.PathLike[str],
    environ: Mapping[str, str] | None = None,
    on_mistake: Callable[[Path, ConfigError], None] | None = None,
) -> Tree:
    """Read a configuration file.

    Args:
        path: The YAML file, in UTF-8.
        environ: Variables for ``${VAR}`` and ``${VAR:-default}``; the process environment if None.
        on_mistake: Gets the path of a key, and what is wrong with its value, which is then left out; None raises it.

    Raises:
        ConfigError: The file cannot be read, is no YAML, is no mapping, repeats a key, or names a variable
            that is not set.
    """
    shown = _as_typed(os.fspath(path))
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (a plain path keeps pathlib's errors out)
            raw = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read the configuration: {problem}", file=shown) from None
    if len(raw) > _MAX_BYTES:
        raise ConfigError(f"larger than {_MAX_BYTES} bytes: this is no server configuration", file=shown)
    try:
        root = yaml.compose(raw.decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text (byte {error.start}); save it as UTF-8", file=shown) from None
    except RecursionError:
        raise ConfigError("nested too deeply", file=shown) from None
    except yaml.YAMLError as error:
        raise _syntax_error(error, shown) from None
    if root is None:
        raise ConfigError("the file is empty: name at least a backend, or several under 'servers:'", file=shown)
    reader = _Reader(shown, os.environ if environ is None else environ, on_mistake)
    data = reader.read(root)
    if not isinstance(data, dict):
        raise reader.error("expected a mapping such as 'backend: vllm' at the top", root)
    return Tree(data, Origins(reader.places))


def parse_scalar(text: str, label: str) -> Any:
    """Return the value of ``text`` read as YAML: a number, true, a list, or the text itself.

    Args:
        text: What to read; ``${`` has no meaning in it.
        label: What the user knows the source as.

    Raises:
        ConfigError: It is no YAML.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader) if text else None
        return text if root is None else _Reader(label, None).read(root)
    except (yaml.YAMLError, RecursionError, ConfigError):
        raise ConfigError(f"cannot read {text!r} as a YAML value; put it in quotes", file=label) from None


def _as_typed(path: str) -> str:
    """Return the path of a file below the working directory as relative, as the user sees it."""
    try:
        here = os.getcwd() + os.sep  # noqa: PTH109
    except FileNotFoundError:
        return path
    return path.removeprefix(here)


def _syntax_error(error: yaml.YAMLError, shown: str) -> ConfigError:
    if isinstance(error, ReaderError):
        message = f"character {error.position} is U+{error.character:04X}, which a text file cannot hold"
        return ConfigError(f"{message}; save it as UTF-8", file=shown)
    problem = getattr(error, "problem", None) or str(error)
    mark = getattr(error, "problem_mark", None)
    if "'\\t'" in problem:
        problem = "a tab cannot indent; use spaces"
    elif problem == "but found another document":
        problem = "a second document begins here; put several servers under 'servers:'"
    elif problem.endswith("but got '{'") and mark and mark.buffer[mark.pointer - 1] == "$":
        problem = "between { and } write ${...} in quotes, or give the key a line of its own"
    elif problem.startswith("mapping values are not allowed"):
        problem = "a ':' that does not belong here; indent the line like its neighbours, or put the value in quotes"
    elif getattr(error, "context", None):
        problem = f"{error.context}: {problem}"  # type: ignore[attr-defined]
    message = f"not valid YAML: {problem}"
    if mark is None:
        return ConfigError(message, file=shown)
    return ConfigError(message, file=shown, line=mark.line + 1, column=mark.column + 1)


class _Reader:
    """Walks the nodes of one file and notes where each value stands."""

    def __init__(
        self,
        file: str,
        environ: Mapping[str, str] | None,
        on_mistake: Callable[[Path, ConfigError], None] | None = None,
    ) -> None:
        self.file = file
        self.on_mistake = on_mistake
        self.environ = environ
        self.places: dict[Path, Origin] = {}
        self.variables: dict[str, str] = {}
        self._constructor = yaml.SafeLoader("")
        self._open: list[int] = []
        self._count = 0

    def error(self, message: str, node: Node) -> ConfigError:
        mark, message = node.start_mark, hide(message, self.variables)
        return ConfigError(message, file=self.file, line=mark.line + 1, column=mark.column + 1)

    def read(self, root: Node) -> Any:
        return self._placed(root, root, ())

    def value(self, node: Node, path: Path) -> Any:
        self._guard(node)
        self._open.append(id(node))
        try:
            if isinstance(node, MappingNode):
                return self._mapping(node, path)
            if isinstance(node, SequenceNode):
                return [self._placed(item, item, (*path, index)) for index, item in enumerate(node.value)]
            assert isinstance(node, ScalarNode)
            return self._scalar(node)
        finally:
            self._open.pop()

    def _placed(self, node: Node, at: Node, path: Path) -> Any:
        """Return the value of ``node``, which stands where ``at`` does."""
        written = node.value if isinstance(node, ScalarNode) and self._has_variable(node) else None
        mark = at.start_mark
        self.places[path] = Origin(self.file, mark.line + 1, mark.column + 1, written, self.variables)
        return self.value(node, path)

    def _has_variable(self, node: ScalarNode) -> bool:
        return self.environ is not None and any(match[0] != "$${" for match in _VARIABLE.finditer(node.value))

    def _guard(self, node: Node) -> None:
        self._count += 1
        if id(node) in self._open:
            raise self.error("an alias that contains itself", node)
        if self._count > _MAX_VALUES:
            raise self.error(f"more than {_MAX_VALUES} values, aliases filled in", node)
        if len(self._open) > _MAX_DEPTH:
            raise self.error("nested too deeply", node)
        if not isinstance(node, ScalarNode) and node.tag not in _COLLECTION_TAGS:
            raise self.error(f"the tag '{node.tag}' has no meaning here", node)

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        result = self._merged(node, path)
        own: set[str] = set()
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE_TAG:
                continue
            key = self._key(key_node)
            try:
                if key in own:
                    raise self.error(f"'{key}' stands here for the second time", key_node)
                own.add(key)
                result[key] = self._placed(value_node, key_node, (*path, key))
            except ConfigError as error:
                if self.on_mistake is None:
                    raise
                self.on_mistake((*path, key), error)
        return result

    def _key(self, node: Node) -> str:
        if not isinstance(node, ScalarNode):
            raise self.error("a key must be text; a value that begins with '{' or '[' needs quotes", node)
        key = self._scalar(node)
        if not isinstance(key, str):
            raise self.error(f"a key must be text: put '{node.value}' in quotes", node)
        return key

    def _merged(self, node: MappingNode, path: Path) -> dict[str, Any]:
        """Return what ``<<`` brings in; the mapping's own keys count more, wherever they stand."""
        sources = [(key, value) for key, value in node.value if key.tag == _MERGE_TAG]
        if len(sources) > 1:
            raise self.error("'<<' stands here for the second time; write <<: [*a, *b]", sources[1][0])
        merged: dict[str, Any] = {}
        for _, value in sources:
            # The first one in a list counts most.
            for source in reversed(value.value if isinstance(value, SequenceNode) else [value]):
                if not isinstance(source, MappingNode):
                    raise self.error("'<<' takes a mapping or a list of mappings", source)
                merged.update(self.value(source, path))
        return merged

    def _scalar(self, node: ScalarNode) -> Any:
        text = node.value if self.environ is None else self._filled(node)
        tag = node.tag
        if text != node.value and node.style is None:
            # An unquoted ${PORT} is typed as if its value stood in the file.
            resolve: Any = self._constructor.resolve
            tag = resolve(ScalarNode, text, (True, False))
        if tag in _TEXT_TAGS or (node.style is None and _OLD_NUMBER.match(text)):
            return text
        try:
            return self._constructor.construct_object(ScalarNode(tag, text, node.start_mark))
        except (yaml.YAMLError, ValueError) as error:
            problem = getattr(error, "problem", None) or error
            if text != node.value:
                # It may quote the value in small letters.
                problem = f"what {node.value} stands for is no {tag.removeprefix('tag:yaml.org,2002:')}"
            raise self.error(f"cannot read this value: {problem}", node) from None

    def _filled(self, node: ScalarNode) -> str:
        return _VARIABLE.sub(lambda match: self._variable(match, node), node.value)

    def _variable(self, match: re.Match[str], node: Node) -> str:
        if match.group() == "$${":
            return "${"
        parts = _VARIABLE_NAME.match(match.group(1)) if match.group(2) else None
        if parts is None:
            raise self.error(
                f"'{match.group()}' is not ${{NAME}} or ${{NAME:-default}} (no braces in the default);"
                " write $${ for a plain ${",
                node,
            )
        name, default = parts.groups()
        value = (self.environ or {}).get(name)
        if value:
            self.variables[value] = f"${{{name}}}"
        if default is not None:
            return value or default
        if value is None:
            raise self.error(f"the environment variable {name} is not set; set it, or write ${{{name}:-default}}", node)
        return value

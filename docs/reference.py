"""Directives that write what the code itself knows: the keys of the YAML, the markers, the help of ``infserver``."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.application import Sphinx

from pytest_infserver.cli.main import main
from pytest_infserver.config.schema import json_schema
from pytest_infserver.plugin import MARKERS


class _Markdown(Directive):
    """A directive whose content is Markdown that is made here."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        node = nodes.container()
        self.state.nested_parse(StringList(list(self.lines()), source="reference"), self.content_offset, node)
        return node.children

    def lines(self) -> Iterator[str]:
        raise NotImplementedError


class Keys(_Markdown):
    """A table of the keys of a server, or of one of its blocks."""

    def lines(self) -> Iterator[str]:
        properties = json_schema()["$defs"]["server"]["properties"]
        if self.arguments:
            properties = properties[self.arguments[0]]["anyOf"][0]["properties"]
        yield from ("| key | value | default | |", "|-|-|-|-|")
        for name, schema in properties.items():
            default = f"`{schema['default']}`" if "default" in schema else ""
            yield f"| `{name}` | {_kind(schema['anyOf'])} | {default} | {_escaped(schema['description'])} |"


class Markers(_Markdown):
    """The lines that ``pytest --markers`` shows of this plugin."""

    def lines(self) -> Iterator[str]:
        for marker in MARKERS:
            usage, _, meaning = marker.partition(": ")
            yield f"- `@pytest.mark.{usage}`: {_escaped(meaning)}"


class Help(_Markdown):
    """What ``infserver --help`` says."""

    def lines(self) -> Iterator[str]:
        yield "```text"
        with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
            main(["--help"])
        yield from said.getvalue().splitlines()
        yield "```"


def _kind(choices: list[dict[str, Any]]) -> str:
    """Return in words what a value may be; that ``${VAR}`` and null may always stand there is said once."""
    told = dict.fromkeys(_word(one) for one in choices if "pattern" not in one or one.get("pattern") != r"\$\{")
    return ", ".join(word for word in told if word not in ("", "null"))


def _word(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema or "oneOf" in schema:
        return _kind(schema.get("anyOf") or schema["oneOf"])
    kind = schema.get("type", "")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def setup(app: Sphinx) -> dict[str, bool]:
    """Declare the directives."""
    app.add_directive("infserver-keys", Keys)
    app.add_directive("infserver-markers", Markers)
    app.add_directive("infserver-help", Help)
    return {"parallel_read_safe": True}

"""Nobody changes what users import without noticing: names, methods and signatures, one in a line."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

MODULES = [
    "pytest_infserver",
    "pytest_infserver.backends",
    "pytest_infserver.compat_vllm",
    "pytest_infserver.compat_llamacpp",
    "pytest_infserver.compat_sglang",
]
SURFACE = Path(__file__).parent / "public_surface.txt"


def surface() -> Iterator[str]:
    """Yield what each public module offers."""
    for module_name in MODULES:
        for name, value in sorted(_offered(module_name).items()):
            yield from _described(f"{module_name}.{name}", value)


def _offered(module_name: str) -> dict[str, object]:
    module = importlib.import_module(module_name)
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module_name
    ]
    return {name: getattr(module, name) for name in names}


def _described(name: str, value: object) -> Iterator[str]:
    if not inspect.isclass(value):
        yield f"{name}{_signature(value)}"
        return
    bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
    yield f"{name}({bases})"
    if issubclass(value, enum.Enum):
        yield f"{name}: {', '.join(value.__members__)}"
        return
    if dataclasses.is_dataclass(value):
        yield f"{name}: {', '.join(field.name for field in dataclasses.fields(value))}"
    elif issubclass(value, tuple) and hasattr(value, "_fields"):
        yield f"{name}: {', '.join(value._fields)}"
    for member, found in sorted(_members(value).items()):
        if (member.startswith("_") and member != "__init__") or member in getattr(value, "_fields", ()):
            continue
        if isinstance(found, (classmethod, staticmethod)):
            yield f"{name}.{member}{_signature(found.__func__)} ({type(found).__name__})"
        elif inspect.isfunction(found):
            if member != "__init__" or not dataclasses.is_dataclass(value):
                yield f"{name}.{member}{_signature(found)}"
        else:
            yield f"{name}.{member}"


def _members(value: type) -> dict[str, object]:
    """Return what a class adds to the next one above it that users import, too."""
    exported = {one for module in MODULES for one in _offered(module).values()}
    found: dict[str, object] = {}
    for one in value.__mro__:
        if one is not value and (one in exported or not one.__module__.startswith("pytest_infserver")):
            break
        found = {**vars(one), **found}
    return found


def _signature(value: object) -> str:
    text = str(inspect.signature(value)) if callable(value) else ""
    # A function that is a default has its address in its name.
    return re.sub(r"<function .*? at 0x\w+>", "<function>", text)


def test_what_users_import_is_as_it_was() -> None:
    found = [line.rstrip() for line in surface()]
    pinned = SURFACE.read_text(encoding="utf-8").splitlines()
    gone, new = [one for one in pinned if one not in found], [one for one in found if one not in pinned]
    assert (gone, new) == ([], []), (
        f"what users import has changed: if that is meant, say so in CHANGELOG.md, and write it down with\n"
        f"  python {Path(__file__).name}, in the folder tests"
    )
    assert found == pinned


@pytest.mark.parametrize("module", MODULES)
def test_all_of_it_is_documented(module: str) -> None:
    values = _offered(module)
    assert [name for name, value in values.items() if not inspect.getdoc(value)] == []
    classes = {name: value for name, value in values.items() if inspect.isclass(value)}
    undocumented = [
        f"{name}.{member}"
        for name, value in classes.items()
        for member, own in vars(value).items()
        if not member.startswith("_")
        and (inspect.isfunction(own) or isinstance(own, (property, classmethod)))
        and not inspect.getdoc(getattr(value, member))
    ]
    assert undocumented == []


if __name__ == "__main__":
    SURFACE.write_text("".join(f"{line.rstrip()}\n" for line in surface()), encoding="utf-8")

"""Every block of every page works: commands are run or looked up, YAML is loaded, Python is executed.

`python tests/docs/test_pages.py` lists the blocks that cannot be run here, with the reason.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml
from pages import BLOCKS, PAGES, ROOT, Block

from pytest_infserver import load_server_configs, variant
from pytest_infserver.config.model import ProfileConfig, ServerConfig, keys
from pytest_infserver.options import OPTIONS

LIMIT = 120
STORIES = sorted({block.page for block in BLOCKS if block.status is not None})
EXTRAS = metadata("pytest-infserver").get_all("Provides-Extra") or []
SHELL = ("bash", "console", "sh", "shell")


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def words_of(block: Block) -> list[list[str]]:
    """Return the words of each command of a block."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines for part in line.split("&&") if (words := shlex.split(part, comments=True))]


@pytest.fixture
def hard_limit_seconds() -> int:
    """A page has several commands."""
    return 2 * LIMIT + 20


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    own = {"INFSERVER_STATE_DIR": str(tmp_path / "state"), "PYTHONDONTWRITEBYTECODE": "1"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # Nothing of the tree's own configuration reaches a reader's folder.
    return {name: value for name, value in os.environ.items() if name != "INFSERVER_CONFIG"} | own | {"PATH": path}


@pytest.mark.run
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.promise) if page.stem == "tutorial" else page for page in STORIES],
    ids=lambda page: page.stem,
)
def test_a_page_s_files_and_commands(
    page: Path, tmp_path: Path, environment: dict[str, str], nothing_left: None
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for block in [block for block in BLOCKS if block.page == page]:
        if block.file is not None:
            (folder / block.file).write_text(block.text + "\n", encoding="utf-8")
        if block.status is None:
            continue
        result = subprocess.run(
            ["bash", "-e", "-c", block.text],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert result.returncode == block.status, f"{block}\n{result.stdout}{result.stderr}"


@pytest.mark.parametrize("block", [block for block in of("yaml") if block.is_checked_alone], ids=str)
def test_yaml_is_a_configuration(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "servers.yaml"
    path.write_text(block.text, encoding="utf-8")
    configs = load_server_configs(path)
    document = yaml.safe_load(block.text)
    if "matrix" not in block.text:
        names = list(document.get("servers", {document.get("name", document.get("backend")): None}))
        assert [config.name for config in configs] == names


@pytest.mark.parametrize("block", [block for block in of("python") if block.is_checked_alone], ids=str)
def test_python_can_be_executed(block: Block) -> None:
    code = compile(block.text, str(block), "exec")
    # What is a file of a page with commands is run by them.
    if block.file is None or block.page not in STORIES:
        exec(code, {"__name__": "page", "pytest": pytest, "variant": variant})


@pytest.mark.parametrize("block", of(*SHELL), ids=str)
def test_commands_have_words_that_exist(block: Block, pytestconfig: pytest.Config) -> None:
    for words in words_of(block):
        problem = unknown_word(words, pytestconfig)
        assert problem is None, f"{block}: {problem} in {shlex.join(words)}"


def unknown_word(words: list[str], config: pytest.Config) -> str | None:
    """Return the word of a command that means nothing."""
    if words[:2] == ["pip", "install"]:
        asked = [extra for word in words for extra in re.findall(r"[\w,]+(?=\]$)", word)]
        return next((extra for one in asked for extra in one.split(",") if extra not in EXTRAS), None)
    if words[0] == "infserver":
        known = ("check", "run", "schema", "fetch", "ps", "stop", "load")
        return None if words[1] in known else words[1]
    if words[0] == "pytest":
        return unknown_option(words, config)
    return None


def unknown_option(words: list[str], config: pytest.Config) -> str | None:
    known = {name for group in config._parser._groups for option in group.options for name in option.names()}
    known |= {option.flag.replace("--", "--no-") for option in OPTIONS if option.kind == "switch"}
    ours = [word.partition("=")[0] for word in words if word.startswith(("--infserver-", "--no-infserver-", "--conf"))]
    return next((word for word in ours if word not in known), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_and_variables_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    flags = {option.flag for option in OPTIONS} | {
        option.flag.replace("--", "--no-") for option in OPTIONS if option.kind == "switch"
    }
    assert set(re.findall(r"--(?:no-)?infserver-[a-z][\w-]*", text)) <= flags
    inis = {option.ini for option in OPTIONS}
    assert set(re.findall(r"^(infserver_\w+) *=", text, re.MULTILINE)) <= inis


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith(("http:", "https:")) or (page.parent / target).exists(), target


def test_blocks_with_a_test_of_their_own_have_one() -> None:
    for block in BLOCKS:
        if block.test is not None:
            file, _, name = block.test.partition("::")
            assert f"def {name}" in (ROOT / file).read_text(encoding="utf-8"), f"{block}: {block.test}"


def test_every_block_of_a_shell_says_how_it_is_tested() -> None:
    # Those that only install are looked up: tests install nothing.
    silent = [
        str(block)
        for block in of(*SHELL)
        if block.is_checked_alone and block.status is None and not block.text.startswith("pip install")
    ]
    assert [where for where in silent if not where.startswith(("docs/conformance.md", "docs/load.md"))] == []


def test_a_reason_is_a_sentence() -> None:
    assert all(len(block.reason.split()) >= 3 for block in BLOCKS if block.reason is not None)


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1500


def test_the_key_s_page_has_what_the_example_has() -> None:
    # The page itself is made from these by docs/reference.py.
    example = (ROOT / "conftest_examples" / "example_server_config.yaml").read_text(encoding="utf-8")
    known = {*keys(ServerConfig), *keys(ProfileConfig)} - {"name", "url", "uds"}
    assert {key for key in known if not re.search(rf"^ +{key}:", example, re.MULTILINE)} <= {"api_key", "profile"}


@pytest.mark.parametrize("page", ["install", "yaml"])
def test_the_line_for_editors_names_the_file_of_the_schema(page: str) -> None:
    text = " ".join((ROOT / "docs" / f"{page}.md").read_text().split())
    [written] = re.findall(r"infserver schema > ([\w.]+)", text)
    assert f"`# yaml-language-server: $schema={written}`" in text


if __name__ == "__main__":
    for one in BLOCKS:
        if one.reason is not None:
            print(f"{one}: {one.reason}")

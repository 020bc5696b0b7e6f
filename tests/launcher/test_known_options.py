"""What an engine's own parser accepts, read once, and what is refused because of it before a start."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_infserver import (
    CommandServer,
    ConfigError,
    LlamaCppServer,
    ServerStartupError,
    TransformersServer,
    VLLMServer,
)
from pytest_infserver.cli.main import main
from pytest_infserver.launcher.backends.llamacpp import embedded_options
from pytest_infserver.launcher.checks.options import unread_parser
from pytest_infserver.launcher.engine.known_options import learned
from pytest_infserver.launcher.engine.known_options.help_text import options_in_help
from pytest_infserver.launcher.engine.known_options.option_table import KnownOption, OptionTable, table_from_data
from pytest_infserver.models.builtin import cache_dir

TABLE = OptionTable(
    "vllm 1.0",
    (
        KnownOption(("--max-model-len",)),
        KnownOption(("--seed",), 1, "int"),
        KnownOption(("--share",), 1, "float"),
        KnownOption(("--dtype",), 1, choices=("auto", "float16", "bfloat16")),
        KnownOption(("--enable-eplb", "--no-enable-eplb"), 0),
        KnownOption(("--sizes",), None, "int"),
        KnownOption(("--compilation-config", "-cc"), 1),
        KnownOption(("--api-key",), None, choices=("x",)),
    ),
    few_places=True,
)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "model --max-model-len 8k",
        "--max_model_len=8k --seed -1 --share 1e-3 --share=.5",
        "--no-enable-eplb --enable_eplb",
        "--sizes 1 2 -4 --seed 3",
        "--max-model 4",
        # An abbreviation of two is for the engine to refuse.
        "--s 4",
        "--compilation-config.mode 3 --compilation-config.sizes+ 1 -cc.level 3 -O3 -tp 2",
        "--dtype auto -- --anything",
        "--api-key any-secret-of-mine",
    ],
)
def test_what_the_engine_may_take_passes(words: str) -> None:
    assert TABLE.mistake(words.split()) is None


@pytest.mark.parametrize(
    ("words", "flag", "text"),
    [
        (
            "--max-modle-len 3",
            "--max-modle-len",
            "vllm 1.0 has no option --max-modle-len; did you mean --max-model-len?",
        ),
        (
            "--max_modle_len=3",
            "--max_modle_len",
            "vllm 1.0 has no option --max_modle_len; did you mean --max-model-len?",
        ),
        ("--quite-another", "--quite-another", "vllm 1.0 has no option --quite-another"),
        ("--sead.x 3", "--sead.x", "vllm 1.0 has no option --sead.x"),
        ("--seed one", "--seed", "vllm 1.0: --seed takes a whole number, not 'one'"),
        ("--seed=1.5", "--seed", "vllm 1.0: --seed takes a whole number, not '1.5'"),
        ("--share much", "--share", "vllm 1.0: --share takes a number, not 'much'"),
        ("--sizes 1 two", "--sizes", "vllm 1.0: --sizes takes a whole number, not 'two'"),
        ("--seed", "--seed", "vllm 1.0: --seed needs a value"),
        ("--seed --enable-eplb", "--seed", "vllm 1.0: --seed needs a value"),
        ("--dtype flota16", "--dtype", "vllm 1.0: --dtype does not take 'flota16'; did you mean float16?"),
        ("--dtype x", "--dtype", "vllm 1.0: --dtype does not take 'x'; it takes auto, float16, bfloat16"),
        (
            "--enable-eplb yes",
            "--enable-eplb",
            "vllm 1.0: --enable-eplb takes no value, and is given 'yes'; write the option alone (in YAML: true)",
        ),
    ],
)
def test_what_it_would_refuse_is_told_with_the_nearest_spelling(words: str, flag: str, text: str) -> None:
    found = TABLE.mistake(words.split())
    assert found is not None
    assert found[0] == flag
    assert found[1].startswith(text)


def test_an_option_that_is_known_by_its_beginning_is_checked_like_itself() -> None:
    assert TABLE.mistake(["--see", "x"]) == ("--see", "vllm 1.0: --see takes a whole number, not 'x'")


def test_a_word_with_a_space_is_a_value() -> None:
    assert TABLE.mistake(["--compilation-config", "--not an option"]) is None


@pytest.mark.parametrize("data", [{}, {"options": []}, {"options": [{"flags": 3}]}, {"options": None}])
def test_what_is_no_table_is_none(data: Any) -> None:
    with pytest.raises(ValueError, match="no table of options"):
        table_from_data("x", data)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--ctx-sise", "512"], "the embedded llama.cpp has no option --ctx-sise; did you mean --ctx-size?"),
        (["-zz"], "the embedded llama.cpp has no option -zz"),
        (["--ctx-size=512"], "the embedded llama.cpp has no option --ctx-size=512; did you mean --ctx-size?"),
        (["--ctx-size", "many"], "the embedded llama.cpp: --ctx-size 'many' is not a whole number"),
        (["--jinja", "yes"], "the embedded llama.cpp: --jinja takes no value"),
    ],
)
def test_the_embedded_llamacpp_is_known_without_asking(words: list[str], text: str) -> None:
    found = embedded_options().mistake(words)
    assert found is not None
    assert found[1].startswith(text)


def test_files_of_the_embedded_llamacpp_are_its_own_business() -> None:
    words = ["--lora", "not-there.gguf", "--api-key-file", "nor-this", "--chat-template", "--what", "--ctx_size", "8"]
    assert embedded_options().mistake(words) is None


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Options are checked, with a cache of the test's own."""
    monkeypatch.delenv("INFSERVER_CHECK_OPTIONS")
    monkeypatch.setenv("INFSERVER_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


ARGPARSE = """
    import argparse, sys
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command")
    serve = commands.add_parser("serve")
    serve.add_argument("model", nargs="?")
    for name in ("--host", "--dtype"):
        serve.add_argument(name)
    serve.add_argument("--port", type=int)
    serve.add_argument("--max-model-len", type=int)
    serve.add_argument("--say", nargs="*", default=[])
    serve.add_argument("--enforce-eager", action="store_true")
    {more}
    arguments = parser.{parse}()
    sys.argv = [sys.argv[0], "serve", "--host", arguments.host, "--port", str(arguments.port)]
"""


def install(command: Path, *, more: str = "pass", parse: str = "parse_args") -> None:
    """Give the stand-in of vLLM a parser."""
    head, rest = command.read_text().split("\n", 1)
    text = textwrap.dedent(ARGPARSE).format(more=more, parse=parse)
    command.write_text(f"{head}\n{text}\n{rest}")


def vllm(binary: Path, arguments: Any, **settings: Any) -> VLLMServer:
    folder = binary.parent.parent / "logs"
    config = {"server_args": arguments}
    return VLLMServer("m", binary_path=str(binary), output_dir=folder, startup_timeout=30, config=config, **settings)


def parser_of(server: VLLMServer) -> learned.Parser:
    entry, env = server.options_entry, server.configured_command().env
    assert entry is not None
    found = learned.find_parser("vllm", entry, server.packages, env)
    assert found is not None
    return found


def test_an_option_that_the_installed_engine_does_not_have_is_refused_at_once(
    checked: Path, installed_vllm: Path
) -> None:
    install(installed_vllm)
    file = checked / "servers.yaml"
    file.write_text(
        f"backend: vllm\nmodel: m\nbinary_path: {installed_vllm}\n"
        "config:\n  server_args:\n    dtype: auto\n    max_modle_len: 8\n"
    )
    from pytest_infserver import load_server_config
    from pytest_infserver.launcher.factory import create_from_config

    server = create_from_config(load_server_config(file))
    # Nothing is known yet, and nothing is run to find out.
    assert "--max-modle-len" in server.command().argv
    assert learned.learn(parser_of(vllm(installed_vllm, []))) is None
    message = r"servers\.yaml:7:5: .*vllm 0\.32\.0\+cpu has no option --max-modle-len; did you mean --max-model-len\?"
    with pytest.raises(ConfigError, match=message):
        server.start()
    assert server.launches == 0
    off = create_from_config(load_server_config(file, overrides={"check_options": False}))
    assert "--max-modle-len" in off.command().argv


def test_the_variable_switches_it_off(checked: Path, installed_vllm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(installed_vllm)
    server = vllm(installed_vllm, {"max-modle-len": 8})
    learned.learn(parser_of(server))
    with pytest.raises(ConfigError, match="max-modle-len"):
        server.command_and_notes()
    monkeypatch.setenv("INFSERVER_CHECK_OPTIONS", "0")
    assert server.command_and_notes()[1] == []


def test_a_start_has_them_read_in_the_background(checked: Path, installed_vllm: Path) -> None:
    install(installed_vllm)
    server = vllm(installed_vllm, {"max-model-len": 8})
    parser = parser_of(server)
    with server:
        deadline = time.monotonic() + 60
        while not learned.is_learned(parser) and time.monotonic() < deadline:
            time.sleep(0.05)
    with pytest.raises(ConfigError, match="takes a whole number, not 'x'"):
        vllm(installed_vllm, {"max-model-len": "x"}).start()


def test_the_reader_ends_with_whoever_has_started_it(checked: Path, installed_vllm: Path) -> None:
    install(installed_vllm, more="import time; time.sleep(600)")
    script = (
        "import sys, time, os\n"
        "from pathlib import Path\n"
        "from pytest_infserver.launcher.engine.known_options import learned\n"
        "parser = learned.find_parser('vllm', [sys.argv[1], 'serve'], ('vllm',), dict(os.environ))\n"
        "learned.learn_in_background(parser)\n"
        "time.sleep(1)\n"
        "os._exit(0)\n"
    )
    import subprocess

    # The fixture nothing_left, of which installed_vllm makes use, finds what stays.
    subprocess.run([sys.executable, "-c", script, str(installed_vllm)], timeout=60, check=True)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"parse": "parse_known_args"}, "it takes any option"),
        ({"more": 'serve.add_argument("rest", nargs=argparse.REMAINDER)'}, "it takes any option"),
        ({"more": "sys.exit(3)"}, "exit status 3"),
        ({"more": "print('help'); sys.exit(0)"}, "its help was not shown"),
        ({"more": "raise ImportError('no such library')"}, "exit status 1"),
    ],
)
def test_a_parser_that_cannot_be_read_refuses_nothing(
    checked: Path, installed_vllm: Path, settings: dict[str, str], problem: str
) -> None:
    install(installed_vllm, **settings)
    server = vllm(installed_vllm, {"anything": 1})
    parser = parser_of(server)
    assert learned.learn(parser) == problem
    assert server.command_and_notes()[1] == []
    # It is not tried again with each start.
    assert learned.is_learned(parser)
    long_ago = time.time() - 100_000
    os.utime(parser.file, (long_ago, long_ago))
    assert not learned.is_learned(parser)


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"table": 3}', '{"table": {"options": 1}}'])
def test_a_spoilt_cache_refuses_nothing(checked: Path, installed_vllm: Path, text: str) -> None:
    server = vllm(installed_vllm, {"anything": 1})
    parser = parser_of(server)
    parser.file.parent.mkdir(parents=True)
    parser.file.write_text(text)
    assert server.command_and_notes()[1] == []


def test_a_package_that_is_installed_beside_the_engine_makes_it_another_one(
    checked: Path, installed_vllm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = parser_of(vllm(installed_vllm, []))
    assert parser_of(vllm(installed_vllm, ["--x"])).file == before.file
    [packages] = checked.glob("lib/*/site-packages")
    (packages / "plugin").mkdir()
    os.utime(packages, ns=(0, packages.stat().st_mtime_ns + 1_000_000))
    after = parser_of(vllm(installed_vllm, []))
    assert after.file != before.file
    monkeypatch.setenv("VLLM_PLUGINS", "mine")
    assert parser_of(vllm(installed_vllm, [])).file != after.file


def test_an_engine_that_is_edited_has_no_table(checked: Path, installed_vllm: Path) -> None:
    [info] = checked.glob("lib/*/site-packages/vllm-*.dist-info")
    (info / "direct_url.json").write_text(json.dumps({"url": "file:///src", "dir_info": {"editable": True}}))
    server = vllm(installed_vllm, [])
    entry = server.options_entry
    assert entry is not None
    assert learned.find_parser("vllm", entry, server.packages, server.configured_command().env) is None


def test_check_reads_them_once(
    checked: Path, installed_vllm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(installed_vllm)
    monkeypatch.setenv("PATH", f"{installed_vllm.parent}:{os.environ['PATH']}")
    file = checked / "servers.yaml"
    file.write_text("backend: vllm\nmodel: m\nconfig: {server_args: {max-modle-len: 8}}\n")
    assert main(["check", str(file)]) == 4
    said = capsys.readouterr().err
    assert "reading once which options vllm 0.32.0+cpu has" in said
    assert "has no option --max-modle-len; did you mean --max-model-len?" in said
    assert main(["check", str(file)]) == 4
    assert "reading" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings", ["binary_path: {vllm}", "entrypoint: [{vllm}, serve]", "env_vars: {{PYTHONPATH: {folder}}}"]
)
def test_check_runs_no_program_of_the_file(
    checked: Path, installed_vllm: Path, monkeypatch: pytest.MonkeyPatch, settings: str
) -> None:
    install(installed_vllm, more=f"open({str(checked / 'was-run')!r}, 'w').close()")
    monkeypatch.setenv("PATH", f"{installed_vllm.parent}:{os.environ['PATH']}")
    file = checked / "servers.yaml"
    file.write_text(f"backend: vllm\nmodel: m\n{settings.format(vllm=installed_vllm, folder=checked)}\n")
    assert main(["check", str(file)]) == 0
    assert not (checked / "was-run").exists()


def test_what_is_not_ours_is_left_alone(checked: Path, installed_vllm: Path) -> None:
    class Mine(VLLMServer):
        pass

    install(installed_vllm)
    learned.learn(parser_of(vllm(installed_vllm, [])))
    mine = Mine("m", binary_path=str(installed_vllm), config={"server_args": {"max-modle-len": 8}})
    assert "--max-modle-len" in mine.command_and_notes()[0].argv
    own = CommandServer(launch_command=["x", "--anything"], port=8123)
    assert own.command_and_notes()[0].argv == ("x", "--anything")
    assert unread_parser(own) is None


def test_the_embedded_llamacpp_refuses_before_its_start(checked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = LlamaCppServer("builtin:tiny", binary_path=sys.executable, config={"server_args": {"ctx_sise": 512}})
    with pytest.raises(ConfigError, match=r"has no option --ctx-sise; did you mean --ctx-size\?"):
        server.command_and_notes()
    good = LlamaCppServer("builtin:tiny", binary_path=sys.executable, config={"server_args": {"ctx_size": 512}})
    assert good.command_and_notes()[1] == []
    # Whatever that is, it is not the embedded one.
    other = LlamaCppServer("builtin:tiny", binary_path="/opt/llama-server", config={"server_args": {"ctx_sise": 1}})
    assert other.command_and_notes()[1] == []
    assert TransformersServer("m", config={"server_args": {"x": 1}}).command_and_notes()[1] == []
    assert not (cache_dir() / "options").exists()


HELP = """\
----- common params -----

-h,    --help, --usage                  print usage and exit
-c,    --ctx-size N                     size of the prompt context
                                        (env: LLAMA_ARG_CTX_SIZE)
-fa,   --flash-attn [on|off|auto]       whether to use it ('on', 'off', or 'auto')
-ot,   --override-tensor <tensor name pattern>=<buffer type>,...
                                        override tensor buffer type
--rope-scaling {none,linear,yarn}       how to scale, see --yarn-factor
--control-vector-layer-range START END
                                        layer range, start and end inclusive


----- sampling params -----

--temp N                                temperature
--jinja, --no-jinja                     whether to use the engine
                                        - a list in the text
"""


def test_the_help_of_llama_server_is_read() -> None:
    data = options_in_help(f"load_backend: loaded CPU backend\n{HELP}")
    assert data is not None
    table = table_from_data("llama-server", data)
    assert [(option.flags, option.values) for option in table.options] == [
        (("-h", "--help", "--usage"), 0),
        (("-c", "--ctx-size"), 1),
        (("-fa", "--flash-attn"), 1),
        (("-ot", "--override-tensor"), 1),
        (("--rope-scaling",), 1),
        (("--control-vector-layer-range",), 2),
        (("--temp",), 1),
        (("--jinja", "--no-jinja"), 0),
    ]
    good = "-c 8 --ctx_size -1 -fa 1 -ot a=b --rope-scaling yarn --control-vector-layer-range 1 -2 --no-jinja"
    assert table.mistake(good.split()) is None
    for words, text in {
        "--ctx-sise 8": "llama-server has no option --ctx-sise; did you mean --ctx-size?",
        "--temp=3": "llama-server has no option --temp=3; did you mean --temp?",
        "-zz": "llama-server has no option -zz",
        "--rope-scaling yran": "llama-server: --rope-scaling does not take 'yran'; did you mean yarn?",
        "--jinja yes": "llama-server: --jinja takes no value",
        "--ctx-size": "llama-server: --ctx-size needs a value",
    }.items():
        found = table.mistake(words.split())
        assert found is not None
        assert found[1].startswith(text)


@pytest.mark.parametrize("text", ["", "usage: llama-server [-h]\n  --host HOST\n", "-----\n-c N\n", "----- a -----\n"])
def test_another_help_is_none(text: str) -> None:
    assert options_in_help(text) is None


def test_a_llama_server_is_asked_once_per_version(checked: Path, nothing_left: None) -> None:
    """However it is started: one that is replaced is asked again, one that prints nothing is believed."""
    program, asked = checked / "llama-server", checked / "asked"

    def write(help_text: str) -> None:
        program.write_text(f"#!/bin/sh\necho >> {asked}\ncat <<'E'\n{help_text}\nE\nexit 1\n")
        program.chmod(0o755)

    def refusal(**arguments: Any) -> str:
        server = LlamaCppServer(
            binary_path=str(program),
            output_dir=checked,
            config={"server_args": {"models-dir": ".", **arguments}},
        )
        with pytest.raises((ConfigError, ServerStartupError)) as caught:
            server.start()
        return f"{type(caught.value).__name__}: {caught.value}"

    models = "--models-dir PATH                       where models are\n--host HOST     h\n--port PORT     p"
    write(f"{HELP}{models}")
    assert "llama-server has no option --ctx-sise" in refusal(**{"ctx-sise": 8})
    assert len(asked.read_text().split("\n")) == 2
    assert "has no option --ctx-sise" in refusal(**{"ctx-sise": 8})
    assert len(asked.read_text().split("\n")) == 2
    # It is launched, and ends.
    assert refusal(jinja=True).startswith("ServerStartupError")
    write(f"{HELP}{models}\n--ctx-sise N     a newer one has it")
    assert refusal(**{"ctx-sise": 8}).startswith("ServerStartupError")
    write("no help")
    assert refusal(**{"any-thing": 8}).startswith("ServerStartupError")

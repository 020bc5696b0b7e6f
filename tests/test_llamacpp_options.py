"""The flags of llama-server's own tests on the embedded one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_infserver.embedded_llamacpp.options import OPTIONS, UsageError, restrict_origins
from pytest_infserver.embedded_llamacpp.server import parse
from pytest_infserver.models.builtin import builtin_path

xllamacpp = pytest.importorskip("xllamacpp")
MODEL = ["--model", str(builtin_path("builtin:tiny"))]


def value_of(attribute: str, *words: str) -> Any:
    params = xllamacpp.CommonParams()
    for option, value in parse([*MODEL, *words]):
        option.apply(params, value)
    for name in attribute.split("."):
        params = getattr(params, name)
    return params


@pytest.mark.parametrize(
    ("words", "attribute", "value"),
    [
        ("--tools all", "server_tools", ["all"]),
        ("--tools a,b", "server_tools", ["a", "b"]),
        ("--offline", "offline", True),
        ("--ui-mcp-proxy", "ui_mcp_proxy", True),
        ("--ui-mcp-proxy --no-webui-mcp-proxy", "ui_mcp_proxy", False),
        ('--mcp-servers-json {"mcpServers":{}}', "mcp_servers_json", '{"mcpServers":{}}'),
        ("--no-mmproj", "no_mmproj", True),
        ("--reasoning on", "enable_reasoning", 1),
        ("-rea off", "enable_reasoning", 0),
        ("--reasoning auto", "enable_reasoning", -1),
        ("--reasoning-budget 0", "sampling.reasoning_budget_tokens", 0),
        ('--chat-template-kwargs {"a":true}', "default_template_kwargs", {"a": "true"}),
        ("--no-prefill-assistant", "prefill_assistant", False),
        ("--cors-origins http://a,http://b", "cors_origins", "http://a,http://b"),
        ("--cors-origins http://a", "cors_origins_explicit", True),
        ("--kv-unified", "kv_unified", True),
        ("--kv-unified --no-kv-unified", "kv_unified", False),
        ("--context-shift", "ctx_shift", True),
        ("--swa-full", "swa_full", True),
        ("--keep -1", "n_keep", -1),
        ("--cache-reuse 8", "n_cache_reuse", 8),
        ("--cache_ram 100", "cache_ram_mib", 100),
        ("--no-cache-idle-slots", "cache_idle_slots", False),
        ("--ctx-checkpoints 2", "n_ctx_checkpoints", 2),
        ("--slot-prompt-similarity 0.5", "slot_prompt_similarity", 0.5),
        ("--sleep-idle-seconds 5", "sleep_idle_seconds", 5),
        ("--grp-attn-n 2 --grp-attn-w 64", "grp_attn_w", 64),
        ("--tags a,b", "model_tags", {"a", "b"}),
        ("--reuse-port", "reuse_port", True),
        ("--repeat-penalty 1.5", "sampling.penalty_repeat", 1.5),
        ("--backend_sampling", "sampling.backend_sampling", True),
        ("--verbose", "verbosity", 2**31 - 1),
    ],
)
def test_a_flag_sets_what_xllamacpp_has_for_it(words: str, attribute: str, value: Any) -> None:
    assert value_of(attribute, *words.split(" ")) == value


def test_folders_and_files_must_be_there(tmp_path: Path) -> None:
    assert value_of("media_path", "--media-path", str(tmp_path)) == f"{tmp_path}/"
    for flag in ("--media-path", "--path", "--mmproj"):
        with pytest.raises(UsageError, match=flag):
            parse([*MODEL, flag, str(tmp_path / "none")])


@pytest.mark.parametrize("words", ["--reasoning maybe", "--chat-template-kwargs [1]", "--grp-attn-n 0"])
def test_a_wrong_value_is_refused(words: str) -> None:
    with pytest.raises(UsageError, match="error while handling argument"):
        parse([*MODEL, *words.split(" ")])


def test_no_flag_is_taken_twice() -> None:
    flags = [flag for option in OPTIONS for flag in option.flags + option.off]
    assert len(flags) == len(set(flags))


@pytest.mark.parametrize(
    ("words", "origins"),
    [
        ("--metrics", "*"),
        ("--tools all", "localhost"),
        ("--mcp-servers-json {}", "localhost"),
        ("--tools all --cors-origins *", "*"),
        ("--cors-origins http://a --tools all", "http://a"),
    ],
)
def test_who_offers_tools_does_so_to_this_machine(words: str, origins: str) -> None:
    """As llama-server does it: any page that somebody has open could run them otherwise."""
    params = xllamacpp.CommonParams()
    for option, value in parse([*MODEL, *words.split()]):
        option.apply(params, value)
    restrict_origins(params)
    assert params.cors_origins == origins

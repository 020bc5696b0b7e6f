"""The options of the embedded llama.cpp: how they are spelt, read, and set on xllamacpp's parameters."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

_TRUE = ("on", "enabled", "true", "1")
_FALSE = ("off", "disabled", "false", "0")
_AUTO = ("auto", "-1")
_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")


class UsageError(Exception):
    """The command line is wrong; the text is the whole message for the user."""


class Option(NamedTuple):
    """One option of llama-server.

    Attributes:
        flags: Its spellings.
        apply: Sets its value, as `parse` returned it, on an `xllamacpp.CommonParams`. Runs after `import
            xllamacpp`.
        parse: Turns the value's text into the value, or raises ValueError; None when the option takes no
            value (the value is then True).
        help: One line for `--help`.
        off: Spellings that switch it off (the value is then False).
    """

    flags: tuple[str, ...]
    apply: Callable[[Any, Any], None]
    parse: Callable[[str], Any] | None
    help: str
    off: tuple[str, ...] = ()


def _whole(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            # Python would read 1_000 as a thousand, llama-server as one.
            number = int(text.replace("_", "?"))
        except ValueError:
            raise ValueError(f"{text!r} is not a whole number") from None
        if not low <= number <= high:
            raise ValueError(f"{number} is not between {low} and {high}")
        return number

    return parse


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not finite")
    return number


def _one_of(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"{text!r} is none of {', '.join(names)}")
        return text

    return parse


def _switch(text: str) -> str:
    for name, spellings in (("ENABLED", _TRUE), ("DISABLED", _FALSE), ("AUTO", _AUTO)):
        if text in spellings:
            return name
    raise ValueError(f"{text!r} is none of on, off, auto")


def _slots(text: str) -> int:
    number = _whole(-1)(text)
    if number == 0:
        raise ValueError("0 slots serve nobody")
    return number


def _gpu_layers(text: str) -> int:
    words = {"auto": -1, "all": -2}
    return words[text] if text in words else _whole(-2)(text)


def _seed(text: str) -> int:
    return _whole(-1, 2**32 - 1)(text) % 2**32


def commas(text: str) -> list[str]:
    """Return the items of a comma-separated text."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _proportions(text: str) -> list[float]:
    return [_number(part) for part in text.replace("/", ",").split(",") if part]


def _adapters(text: str) -> list[str]:
    return [_file(part) for part in commas(text)]


def _file(text: str) -> str:
    if not Path(text).is_file():
        raise ValueError(f"no such file: {text}")
    return text


def _directory(text: str) -> str:
    if not Path(text).is_dir():
        raise ValueError(f"not a directory: {text}")
    # llama.cpp joins file names to it without a separator of its own.
    return text if text.endswith("/") else text + "/"


def _text_of(text: str) -> str:
    return Path(_file(text)).read_text(encoding="utf-8")


def _keys_of(text: str) -> list[str]:
    return [line for line in _text_of(text).splitlines() if line and not line.startswith("#")]


def _to(*attributes: str) -> Callable[[Any, Any], None]:
    """Return a setter for attributes of the parameters; a dotted name goes through a nested object."""

    def apply(params: Any, value: Any) -> None:
        for attribute in attributes:
            owner = params
            *parents, name = attribute.split(".")
            for parent in parents:
                owner = getattr(owner, parent)
            # Assigning an unknown name raises AttributeError: the extension's classes have no __dict__.
            setattr(owner, name, value)

    return apply


def _to_enum(attribute: str, enum: str, prefix: str) -> Callable[[Any, Any], None]:
    """Return a setter that looks the value's name up in an enum of xllamacpp."""

    def apply(params: Any, value: Any) -> None:
        import xllamacpp

        member = prefix + value.upper().replace("-", "_")
        setattr(params, attribute, getattr(getattr(xllamacpp, enum), member))

    return apply


def _sampling(attribute: str) -> Callable[[Any, Any], None]:
    """Return a setter for a sampling default that a model's own recommendation does not override."""

    def apply(params: Any, value: Any) -> None:
        import xllamacpp

        setattr(params.sampling, attribute, value)
        bits = xllamacpp.common_params_sampling_config
        params.sampling.user_sampling_config |= int(bits[f"COMMON_PARAMS_SAMPLING_CONFIG_{attribute.upper()}"])

    return apply


def _set_context_size(params: Any, value: int) -> None:
    params.n_ctx = value
    if value == 0:
        # 0 asks for the model's whole context: forbid fitting it to the memory.
        params.fit_params_min_ctx = 2**31 - 1


def _set_threads(attribute: str) -> Callable[[Any, Any], None]:
    def apply(params: Any, value: int) -> None:
        getattr(params, attribute).n_threads = value if value > 0 else os.cpu_count() or 1

    return apply


def _add_keys(params: Any, value: list[str]) -> None:
    params.api_keys = [*params.api_keys, *value]


def _add_aliases(params: Any, value: list[str]) -> None:
    params.model_alias = {*params.model_alias, *value}


def _add_adapters(params: Any, value: list[str]) -> None:
    import xllamacpp

    new = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in value]
    params.lora_adapters = [*params.lora_adapters, *new]


def _set_rerank(params: Any, value: bool) -> None:
    _to("embedding")(params, value)
    _to_enum("pooling_type", "llama_pooling_type", "LLAMA_POOLING_TYPE_")(params, "rank")


def _set_tensor_split(params: Any, value: list[float]) -> None:
    room = len(params.tensor_split)
    if len(value) >= room:
        raise ValueError(f"at most {room - 1} devices are possible")
    params.tensor_split = value + [0.0] * (room - len(value))


def _set_mapping(params: Any, value: bool) -> None:
    _set_load_mode(params, "mmap" if value else "none")


def _set_locking(params: Any, value: bool) -> None:
    _set_load_mode(params, "mlock")


def _tristate(text: str) -> int:
    found = [value for value, names in ((1, _TRUE), (0, _FALSE), (-1, _AUTO)) if text in names]
    if not found:
        raise ValueError(f"{text!r} is none of on, off, auto")
    return found[0]


def _tags(text: str) -> set[str]:
    return set(commas(text))


def _template_values(text: str) -> dict[str, str]:
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("expected a JSON object")
    # llama.cpp has them as JSON.
    return {key: json.dumps(value) for key, value in values.items()}


def _set_cors_origins(params: Any, value: str) -> None:
    params.cors_origins, params.cors_origins_explicit = value, True


def _set_verbose(params: Any, value: bool) -> None:
    params.verbosity = 2**31 - 1


def _load_mode(text: str) -> str:
    name = _one_of("none", "mmap", "mlock", "dio")(text)
    return "direct_io" if name == "dio" else name


_set_load_mode = _to_enum("load_mode", "llama_load_mode", "LLAMA_LOAD_MODE_")
_set_flash = _to_enum("flash_attn_type", "llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_")
_set_pooling = _to_enum("pooling_type", "llama_pooling_type", "LLAMA_POOLING_TYPE_")
_set_split = _to_enum("split_mode", "llama_split_mode", "LLAMA_SPLIT_MODE_")
_set_reasoning = _to_enum("reasoning_format", "common_reasoning_format", "COMMON_REASONING_FORMAT_")
_set_cache_k = _to_enum("cache_type_k", "ggml_type", "GGML_TYPE_")
_set_cache_v = _to_enum("cache_type_v", "ggml_type", "GGML_TYPE_")

OPTIONS = (
    Option(("-m", "--model"), _to("model.path"), str, "GGUF file to serve (required)"),
    Option(("--host",), _to("hostnames"), commas, "addresses to listen on, comma-separated (127.0.0.1)"),
    Option(("--port",), _to("port"), _whole(0, 65535), "port to listen on, 0 for any free one (8080)"),
    Option(("-a", "--alias"), _add_aliases, commas, "model names, comma-separated"),
    Option(("-c", "--ctx-size"), _set_context_size, _whole(0), "context size in tokens (0: the model's own)"),
    Option(("-np", "--parallel"), _to("n_parallel"), _slots, "server slots (-1: automatic)"),
    Option(("-n", "--predict", "--n-predict"), _to("n_predict"), _whole(-1), "tokens to predict (-1: no limit)"),
    Option(("-t", "--threads"), _set_threads("cpuparams"), _whole(-1), "threads for generation"),
    Option(("-tb", "--threads-batch"), _set_threads("cpuparams_batch"), _whole(-1), "threads for prompts"),
    Option(("--threads-http",), _to("n_threads_http"), _whole(-1), "threads for HTTP requests"),
    Option(("-b", "--batch-size"), _to("n_batch"), _whole(1), "logical maximum batch size in tokens"),
    Option(("-ub", "--ubatch-size"), _to("n_ubatch"), _whole(1), "physical maximum batch size in tokens"),
    Option(
        ("-cb", "--cont-batching"), _to("cont_batching"), None, "continuous batching", ("-nocb", "--no-cont-batching")
    ),
    Option(("--cache-prompt",), _to("cache_prompt"), None, "reuse the prompt cache", ("--no-cache-prompt",)),
    Option(("-ngl", "--gpu-layers", "--n-gpu-layers"), _to("n_gpu_layers"), _gpu_layers, "a number, auto or all"),
    Option(("-sm", "--split-mode"), _set_split, _one_of("none", "layer", "row", "tensor"), "split across GPUs"),
    Option(("-mg", "--main-gpu"), _to("main_gpu"), _whole(0), "index of the main GPU"),
    Option(("-ts", "--tensor-split"), _set_tensor_split, _proportions, "share of each GPU, comma-separated"),
    Option(("-fa", "--flash-attn"), _set_flash, _switch, "flash attention: on, off or auto"),
    Option(("-ctk", "--cache-type-k"), _set_cache_k, _one_of(*_CACHE_TYPES), "KV cache type for K"),
    Option(("-ctv", "--cache-type-v"), _set_cache_v, _one_of(*_CACHE_TYPES), "KV cache type for V"),
    Option(("--rope-freq-base",), _to("rope_freq_base"), _number, "RoPE base frequency"),
    Option(("--rope-freq-scale",), _to("rope_freq_scale"), _number, "RoPE frequency scale"),
    Option(("-lm", "--load-mode"), _set_load_mode, _load_mode, "none, mmap, mlock or dio"),
    Option(("--mmap",), _set_mapping, None, "map the model into memory", ("--no-mmap",)),
    Option(("--mlock",), _set_locking, None, "keep the model in memory"),
    Option(("--warmup",), _to("warmup"), None, "one empty run after loading", ("--no-warmup",)),
    Option(("--lora",), _add_adapters, _adapters, "LoRA adapters, comma-separated"),
    Option(("-mm", "--mmproj"), _to("mmproj.path"), _file, "multimodal projector"),
    Option(("-s", "--seed"), _to("sampling.seed"), _seed, "default seed (-1: random)"),
    Option(("--temp", "--temperature"), _sampling("temp"), _number, "default temperature"),
    Option(("--top-k",), _sampling("top_k"), _whole(-1), "default top-k"),
    Option(("--top-p",), _sampling("top_p"), _number, "default top-p"),
    Option(("--min-p",), _sampling("min_p"), _number, "default min-p"),
    Option(("--embedding", "--embeddings"), _to("embedding"), None, "serve embeddings only"),
    Option(("--rerank", "--reranking"), _set_rerank, None, "serve reranking"),
    Option(("--pooling",), _set_pooling, _one_of("none", "mean", "cls", "last", "rank"), "pooling of embeddings"),
    Option(("--jinja",), _to("use_jinja"), None, "Jinja chat templates", ("--no-jinja",)),
    Option(("--chat-template",), _to("chat_template"), str, "chat template, or the name of a built-in one"),
    Option(("--chat-template-file",), _to("chat_template"), _text_of, "file with the chat template"),
    Option(
        ("--reasoning-format",),
        _set_reasoning,
        _one_of("none", "auto", "deepseek", "deepseek-legacy"),
        "how thoughts are returned",
    ),
    Option(("--metrics",), _to("endpoint_metrics"), None, "serve /metrics"),
    Option(("--props",), _to("endpoint_props"), None, "allow POST /props"),
    Option(("--slots",), _to("endpoint_slots"), None, "serve /slots", ("--no-slots",)),
    Option(("--slot-save-path",), _to("slot_save_path"), _directory, "directory for saved slots"),
    Option(("--ui", "--webui"), _to("ui"), None, "serve the web UI", ("--no-ui", "--no-webui")),
    Option(("--api-key",), _add_keys, commas, "API keys, comma-separated"),
    Option(("--api-key-file",), _add_keys, _keys_of, "file with an API key per line"),
    Option(("--api-prefix",), _to("api_prefix"), str, "path prefix of every URL"),
    Option(("-to", "--timeout"), _to("timeout_read", "timeout_write"), _whole(0), "socket timeout in seconds"),
    Option(("--tools",), _to("server_tools"), commas, "built-in tools, comma-separated, or all"),
    Option(("--tools-runtime",), _to("server_tools_runtime"), str, "where the tools run"),
    Option(("--mcp-servers-config",), _to("mcp_servers_config"), _file, "JSON file with MCP servers"),
    Option(("--mcp-servers-json",), _to("mcp_servers_json"), str, "MCP servers as JSON"),
    Option(
        ("--ui-mcp-proxy", "--webui-mcp-proxy"),
        _to("ui_mcp_proxy"),
        None,
        "let the web UI reach MCP servers",
        ("--no-ui-mcp-proxy", "--no-webui-mcp-proxy"),
    ),
    Option(("--offline",), _to("offline"), None, "download nothing, as it never does"),
    Option(("--no-mmproj",), _to("no_mmproj"), None, "no multimodal projector"),
    Option(("-rea", "--reasoning"), _to("enable_reasoning"), _tristate, "thoughts: on, off or auto"),
    Option(
        ("--reasoning-budget",),
        _to("sampling.reasoning_budget_tokens"),
        _whole(-1),
        "tokens of thoughts",
    ),
    Option(("--chat-template-kwargs",), _to("default_template_kwargs"), _template_values, "JSON for the chat template"),
    Option(
        ("--prefill-assistant",),
        _to("prefill_assistant"),
        None,
        "go on with an answer",
        ("--no-prefill-assistant",),
    ),
    Option(("--cors-origins",), _set_cors_origins, str, "origins that browsers may call from, comma-separated"),
    Option(("--cors-methods",), _to("cors_methods"), str, "methods that they may use, comma-separated"),
    Option(("--cors-headers",), _to("cors_headers"), str, "headers that they may send, comma-separated"),
    Option(("--cors-credentials",), _to("cors_credentials"), None, "allow credentials", ("--no-cors-credentials",)),
    Option(("-kvu", "--kv-unified"), _to("kv_unified"), None, "one KV buffer for all", ("-no-kvu", "--no-kv-unified")),
    Option(("--context-shift",), _to("ctx_shift"), None, "shift a full context", ("--no-context-shift",)),
    Option(("--swa-full",), _to("swa_full"), None, "full-size cache of sliding windows"),
    Option(("--keep",), _to("n_keep"), _whole(-1), "tokens of the prompt that stay (-1: all)"),
    Option(("--cache-reuse",), _to("n_cache_reuse"), _whole(0), "smallest chunk that is reused from the cache"),
    Option(("-cram", "--cache-ram"), _to("cache_ram_mib"), _whole(-1), "MiB of the prompt cache (-1: no limit)"),
    Option(("--cache-idle-slots",), _to("cache_idle_slots"), None, "save idle slots", ("--no-cache-idle-slots",)),
    Option(("-ctxcp", "--ctx-checkpoints"), _to("n_ctx_checkpoints"), _whole(0), "context checkpoints of a slot"),
    Option(("-sps", "--slot-prompt-similarity"), _to("slot_prompt_similarity"), _number, "likeness that gets a slot"),
    Option(("--sleep-idle-seconds",), _to("sleep_idle_seconds"), _whole(-1), "idle seconds until it sleeps"),
    Option(("-gan", "--grp-attn-n"), _to("grp_attn_n"), _whole(1), "self-extend: group factor"),
    Option(("-gaw", "--grp-attn-w"), _to("grp_attn_w"), _whole(1), "self-extend: group width"),
    Option(("--tags",), _to("model_tags"), _tags, "tags of the model, comma-separated"),
    Option(("--media-path",), _to("media_path"), _directory, "directory of local media files"),
    Option(("--path",), _to("public_path"), _directory, "directory of static files"),
    Option(("--reuse-port",), _to("reuse_port"), None, "let several servers have the port"),
    Option(("--lora-init-without-apply",), _to("lora_init_without_apply"), None, "load adapters and do not apply them"),
    Option(("--repeat-penalty",), _to("sampling.penalty_repeat"), _number, "default penalty of repetition"),
    Option(("--presence-penalty",), _to("sampling.penalty_present"), _number, "default presence penalty"),
    Option(("--frequency-penalty",), _to("sampling.penalty_freq"), _number, "default frequency penalty"),
    Option(("-bs", "--backend-sampling"), _to("sampling.backend_sampling"), None, "sample in the backend"),
    Option(("-v", "--verbose", "--log-verbose"), _set_verbose, None, "log everything"),
    Option(("-lv", "--verbosity", "--log-verbosity"), _to("verbosity"), _whole(0), "0 none ... 3 info ... 5 debug"),
)
"""Every option except `--help` and `--version`."""


def restrict_origins(params: Any) -> None:
    """Let browsers call from this machine only where tools are offered, unless the user has named origins."""
    # Not each version has all of them.
    names = ("server_tools", "mcp_servers_config", "mcp_servers_json")
    offers_tools = any(getattr(params, name, None) for name in names)
    if offers_tools and not params.cors_origins_explicit:
        params.cors_origins = "localhost"


_LOOK_AT_THE_DISK = (_file, _directory, _text_of, _keys_of, _adapters)
"""Readers of values of which another directory or another moment may think otherwise."""


def complaint_of(option: Option) -> Callable[[str], str | None] | None:
    """Return what says why a value is not one of an option, whatever is on the disk; None if any text may be."""
    parse = option.parse
    if parse is None or parse in _LOOK_AT_THE_DISK:
        return None

    def complain(text: str) -> str | None:
        try:
            parse(text)
        except (ValueError, OSError) as error:
            return str(error)
        return None

    return complain

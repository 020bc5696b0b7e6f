"""llama-server without the binary: `python -m pytest_infserver.llamacpp_server --model M.gguf --port 8080`.

Runs llama.cpp's own HTTP server from the `xllamacpp` package in this process, and speaks llama-server's
command line, with its rules: `--flag value` (never `--flag=value`), no abbreviations, `_` reads as `-`, the
last of a repeated flag counts (aliases, API keys and adapters add up), exit status 1 with a message on stderr
for anything wrong. llama-server's `LLAMA_ARG_*` environment variables are not read. Flags that would have no
effect here are not accepted, with one exception: those about GPUs are, and a build of xllamacpp without GPU
support ignores them.

llama.cpp's log goes to stderr. Before the model is loaded, SIGTERM and SIGINT end the process by that signal;
afterwards they end it with status 0.
"""

import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

_TRUE = ("on", "enabled", "true", "1")
_FALSE = ("off", "disabled", "false", "0")
_AUTO = ("auto", "-1")
_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
_HELP_COLUMN = 44


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


def _commas(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _proportions(text: str) -> list[float]:
    return [_number(part) for part in text.replace("/", ",").split(",") if part]


def _adapters(text: str) -> list[str]:
    return [_file(part) for part in _commas(text)]


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
    Option(("--host",), _to("hostnames"), _commas, "addresses to listen on, comma-separated (127.0.0.1)"),
    Option(("--port",), _to("port"), _whole(0, 65535), "port to listen on, 0 for any free one (8080)"),
    Option(("-a", "--alias"), _add_aliases, _commas, "model names, comma-separated"),
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
    Option(("--api-key",), _add_keys, _commas, "API keys, comma-separated"),
    Option(("--api-key-file",), _add_keys, _keys_of, "file with an API key per line"),
    Option(("--api-prefix",), _to("api_prefix"), str, "path prefix of every URL"),
    Option(("-to", "--timeout"), _to("timeout_read", "timeout_write"), _whole(0), "socket timeout in seconds"),
    Option(("-lv", "--verbosity", "--log-verbosity"), _to("verbosity"), _whole(0), "0 none ... 3 info ... 5 debug"),
)
"""Every option except `--help` and `--version`."""


def parse(argv: list[str]) -> list[tuple[Option, Any]]:
    """Return the options of a command line with their values, in order.

    Args:
        argv: The arguments without the program's name.

    Raises:
        UsageError: An unknown flag, a missing or wrong value, or no model file.
    """
    by_flag = {flag: (option, flag not in option.off) for option in OPTIONS for flag in option.flags + option.off}
    chosen: list[tuple[Option, Any]] = []
    words = iter(argv)
    for word in words:
        flag = word.replace("_", "-") if word.startswith("--") else word
        if flag not in by_flag:
            raise UsageError(f"error: invalid argument: {word}")
        option, on = by_flag[flag]
        value: Any = on
        if option.parse is not None:
            text = next(words, None)
            if text is None:
                raise UsageError(f'error while handling argument "{word}": expected value for argument')
            try:
                value = option.parse(text)
            except (ValueError, OSError) as error:
                raise UsageError(f'error while handling argument "{word}": {error}') from None
        chosen.append((option, value))
    models = [value for option, value in chosen if "--model" in option.flags]
    if not models:
        raise UsageError("error: --model is required")
    if not Path(models[-1]).is_file():
        raise UsageError(f"error: failed to load model: no such file: {models[-1]}")
    return chosen


def usage() -> str:
    """Return the text for `--help`."""
    lines = ["usage: python -m pytest_infserver.llamacpp_server --model FILE [options]", ""]
    for option in OPTIONS:
        spellings = ", ".join(option.flags + option.off) + (" VALUE" if option.parse else "")
        lines.append(f"{spellings:<{_HELP_COLUMN}} {option.help}")
    return "\n".join([*lines, f"{'--version':<{_HELP_COLUMN}} print the version", ""])


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"{message}\n")
    sys.exit(1)


def main(argv: list[str] | None = None) -> NoReturn:
    """Serve until a signal ends the process; see the module's description.

    Args:
        argv: The arguments without the program's name; those of this process when None.

    Raises:
        SystemExit: Status 1 for a wrong command line, a missing package or a failed start; 0 after `--help`
            and `--version`.
    """
    arguments = sys.argv[1:] if argv is None else argv
    # Loading holds the interpreter's lock for as long as it takes, so only the system's own action can end
    # the process until then.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if {"-h", "--help", "--usage"} & set(arguments):
        sys.stdout.write(usage())
        sys.exit(0)
    chosen = []
    if "--version" not in arguments:
        try:
            chosen = parse(arguments)
        except UsageError as error:
            _fail(str(error))
    try:
        import xllamacpp
    except ImportError as error:
        _fail(f"error: cannot import xllamacpp ({error}): pip install 'pytest-infserver[llamacpp]'")
    if "--version" in arguments:
        sys.stderr.write(f"version: xllamacpp {xllamacpp.__version__}\n")
        sys.exit(0)

    params = xllamacpp.CommonParams()
    params.hostnames = ["127.0.0.1"]
    params.port = 8080
    params.n_parallel = -1
    keys = os.environ.get("LLAMA_API_KEY")
    if keys:
        # As llama-server does: on a command line all users of the machine can read it.
        params.api_keys = _commas(keys)
    for option, value in chosen:
        try:
            option.apply(params, value)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            _fail(f"error: xllamacpp {xllamacpp.__version__} does not take {option.flags[-1]} {value!r}: {error}")
    try:
        # Kept in a name: it serves for as long as the object lives.
        server = xllamacpp.Server(params)  # noqa: F841
    except RuntimeError as error:
        _fail(f"error: the server did not start: {error} The lines above give the reason.")

    # Not the server's destructor: while a response is being streamed it blocks for up to 30 s, holding the
    # interpreter's lock, so that nothing could bound it. There is no state to save.
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    # Not pause(): the kernel may hand the signal to one of llama.cpp's threads, and this one would sleep on.
    signal.set_wakeup_fd(tell)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    os.read(told, 1)
    os._exit(0)


if __name__ == "__main__":
    main()

"""llama-server without the binary: `python -m pytest_infserver.embedded_llamacpp.server --model M.gguf --port 8080`.

Runs llama.cpp's own HTTP server from the `xllamacpp` package in this process, and speaks llama-server's
command line, with its rules: `--flag value` (never `--flag=value`), no abbreviations, `_` reads as `-`, the
last of a repeated flag counts (aliases, API keys and adapters add up), exit status 1 with a message on stderr
for anything wrong. llama-server's `LLAMA_ARG_*` environment variables are not read. Flags that would have no
effect here are not accepted, with one exception: those about GPUs are, and a build of xllamacpp without GPU
support ignores them.

llama.cpp's log goes to stderr. Before the model is loaded, SIGTERM and SIGINT end the process by that signal;
afterwards they end it with status 0.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from pytest_infserver.embedded_llamacpp.options import OPTIONS, Option, UsageError, commas, restrict_origins

_HELP_COLUMN = 44


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
    lines = ["usage: python -m pytest_infserver.embedded_llamacpp.server --model FILE [options]", ""]
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
        params.api_keys = commas(keys)
    for option, value in chosen:
        try:
            option.apply(params, value)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            _fail(f"error: xllamacpp {xllamacpp.__version__} does not take {option.flags[-1]} {value!r}: {error}")
    restrict_origins(params)
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

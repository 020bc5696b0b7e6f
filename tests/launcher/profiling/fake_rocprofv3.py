"""A stand-in for rocprofv3: it sets the environment that loads its library, and becomes the command."""

import argparse
import os
import sys


def main():
    if "--" not in sys.argv:
        sys.exit("rocprofv3 requires double-hyphen (--) before the application")
    at = sys.argv.index("--")
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-d", required=True)
    parser.add_argument("--output-format", nargs="+", choices=("csv", "json", "pftrace", "otf2", "rocpd"))
    for flag in ("--runtime-trace", "--sys-trace", "--kernel-trace", "--stats"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args(sys.argv[1:at])
    if options.stats and not (options.runtime_trace or options.sys_trace or options.kernel_trace):
        sys.exit("Fatal error: No tracing options were enabled for --stats option")
    env = {
        **os.environ,
        # Harmless: every process has it.
        "LD_PRELOAD": "libc.so.6",
        "ROCP_TOOL_LIBRARIES": "/opt/rocm/lib/rocprofiler-sdk/librocprofiler-sdk-tool.so",
        "FAKE_ROCPROF_OUTPUT": options.d,
        "FAKE_ROCPROF_ARGV": " ".join(sys.argv[1:at]),
    }
    command = sys.argv[at + 1 :]
    os.execvpe(command[0], command, env)


if __name__ == "__main__":
    main()

"""A stand-in for nsys 2022.4.2: its words, its exit codes, and what it does with the server below it.

Its faults are switched on by the words in FAKE_NSYS. Run as ``python -S fake_nsys.py launch|start|stop|sessions ...``.
"""

import json
import os
import signal
import subprocess
import sys
import time

LAUNCH = [
    "-e, --env-var=",
    "-p, --nvtx-capture=",
    "--session-new=",
    "-t, --trace=",
    "--trace-fork-before-exec=",
    "--wait=",
]
START = [
    "-c, --capture-range=",
    "--capture-range-end=",
    "--cpuctxsw=",
    "-f, --force-overwrite=",
    "-o, --output=",
    "-s, --sample=",
    "--session=",
]
FAULTS = os.environ.get("FAKE_NSYS", "").split()


def note(event):
    if "FAKE_EVENTS" in os.environ:
        with open(os.environ["FAKE_EVENTS"], "a") as file:
            file.write(event + "\n")


def split(words, known):
    """Return the options as a mapping, and the rest."""
    names = {name.strip(): row.split(",")[-1].strip(" =") for row in known for name in row.replace("=", "").split(",")}
    options = {}
    words = list(words)
    while words and words[0].startswith("-"):
        name, equals, value = words.pop(0).partition("=")
        if name not in names:
            print(f"unrecognised option '{name}'")
            sys.exit(1)
        options[names[name]] = value if equals else words.pop(0)
    return options, words


def folder_of(session):
    return os.path.join(os.environ["TMPDIR"], "nvidia", session)


def take(folder):
    """Take the running capture; None if there is none, or if somebody else has it."""
    try:
        os.rename(os.path.join(folder, "capture"), os.path.join(folder, "taken"))
        with open(os.path.join(folder, "taken")) as file:
            return json.load(file)
    except OSError:
        return None


def write_report(folder, capture):
    """Write the report, unless the capture waits for a range that has not begun."""
    if capture["range"] and not os.path.exists(os.path.join(folder, "range")):
        return
    path = capture["output"] + ".nsys-rep"
    if "full" in FAULTS:
        # Fails as on a full disk.
        with open("/dev/full", "w") as file:
            file.write("report")
    if "empty" in FAULTS or "nothing" in FAULTS:
        return
    if "qdstrm" in FAULTS:
        path = capture["output"] + ".qdstrm"
    with open(path, "w") as file:
        file.write("half ")
        file.flush()
        time.sleep(0.2 if "slow" not in FAULTS else 4.0)
        file.write("a report")


def refuse(switch):
    """Refuse a command as the tool does on a busy machine: once, or each time."""
    once = os.path.join(os.environ["TMPDIR"], f"refused-{switch}")
    if "never-sent" in FAULTS or ("unsent" in FAULTS and not os.path.exists(once)):
        open(once, "w").close()
        sys.exit("The proxy is not started.")
    if "unknown" in FAULTS and switch == "start" and not os.path.exists(once):
        open(once, "w").close()
        sys.exit("Dynamic exception type: boost::wrapexcept<QuadDCommon::NotFoundException>")


def start_daemon(code, **how):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", code, *how.get("args", [])])
    os._exit(0)


def launch(words):
    options, command = split(words, LAUNCH)
    assert options["--wait"] == "primary", options
    folder = folder_of(options["--session-new"] if "no-session" not in FAULTS else "another")
    os.makedirs(folder)
    env = {**os.environ, "FAKE_NSYS_SESSION": folder}
    name, _, value = options.get("--env-var", "").partition("=")
    env[name] = value
    note("launch " + " ".join(sorted(word for word in words[: len(words) - len(command)])))
    lost = os.path.join(os.path.dirname(os.environ.get("FAKE_EVENTS", "/tmp/x")), "lost")
    if "always-lost" in FAULTS or ("lost" in FAULTS and not os.path.exists(lost)):
        open(lost, "w").close()
        print("Connection to the Agent lost.")
        sys.exit(0)
    # The agent lives on for a moment.
    reads, _writes = os.pipe()
    os.set_inheritable(reads, True)
    code = f"import os, time; os.read({reads}, 1); time.sleep(0.5)"
    start_daemon(code)
    if "orphan" in FAULTS:
        start_daemon("import time; time.sleep(600)")
    if "open" in FAULTS:
        # It has the report open for as long as the server lives.
        start_daemon(
            "import os, sys, time\nold = None\n"
            "while not os.path.exists(sys.argv[1]): time.sleep(0.01)\n"
            "file = open(sys.argv[1], 'a')\nos.read(int(sys.argv[2]), 1)",
            args=[os.path.join(os.environ["FAKE_OPEN"]), str(reads)],
        )
    child = subprocess.Popen(command, env=env, start_new_session=True)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    code = child.wait()
    capture = take(folder)
    if capture is not None:
        write_report(folder, capture)
    sys.exit(code if code >= 0 else 128 - code)


def start(words):
    options, rest = split(words, START)
    assert not rest, rest
    note("start " + " ".join(sorted(words)))
    if "start-hangs" in FAULTS:
        time.sleep(600)
    folder = folder_of(options["--session"])
    if not os.path.isdir(folder) or any(os.path.exists(f"{folder}/{name}") for name in ("capture", "taken")):
        print("Configuring is not allowed in this state.")
        sys.exit(1)
    assert options["--sample"] in ("none", "process-tree"), options
    assert options.get("--force-overwrite") == "true", options
    if "--capture-range" in options:
        # Its default would end the server.
        assert options["--capture-range-end"] == "stop", options
    capture = {"output": options["--output"], "range": options.get("--capture-range", "")}
    with open(f"{folder}/.capture", "w") as file:
        json.dump(capture, file)
    os.rename(f"{folder}/.capture", f"{folder}/capture")


def stop(words):
    options, _ = split(words, START)
    note("stop")
    if "hang" in FAULTS:
        time.sleep(600)
    folder = folder_of(options["--session"])
    capture = take(folder)
    if capture is None:
        print("The request is not applicable in this state: StopRequest.", flush=True)
        sys.exit(1)
    try:
        write_report(folder, capture)
    finally:
        for name in ("taken", "range"):
            if os.path.exists(f"{folder}/{name}"):
                os.unlink(f"{folder}/{name}")
    print("[1/1] [0%   ] r.nsys-rep\r[1/1] [====100%] r.nsys-rep\nGenerated:\n    " + capture["output"] + ".nsys-rep")


def sessions():
    folder = os.path.join(os.environ["TMPDIR"], "nvidia")
    for number, name in enumerate(sorted(os.listdir(folder)) if os.path.isdir(folder) else []):
        print(f"         {1000 + number}        00:01                    Launched      1 {name}")


def main():
    switch, words = sys.argv[1], sys.argv[2:]
    if words == ["--help"]:
        print(f"usage: nsys {switch} [<args>]\n")
        for row in LAUNCH if switch == "launch" else START:
            print(f"\t{row}\n\n\t   What it does.\n")
    elif switch == "launch":
        launch(words)
    else:
        refuse(switch)
        {"start": lambda: start(words), "stop": lambda: stop(words), "sessions": sessions}[switch]()


if __name__ == "__main__":
    main()

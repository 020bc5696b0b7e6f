"""A stand-in for an engine: a small HTTP server whose faults are switched on by its arguments.

Only the standard library, and few imports: it must start quickly. Run as ``python -S fake_engine.py --port N``.
Unknown arguments are accepted, as if the engine knew them; ``/argv`` gives all of them back.
"""

import argparse
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.parse


def parse():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add = parser.add_argument
    add("--port", type=int, required=True)
    add("--host", default="127.0.0.1")
    add("--delay", type=float, default=0.0, help="seconds before it listens")
    add("--until", default="", metavar="PATH", help="listen only when this file is there")
    add("--loading", type=float, default=0.0, help="seconds of 503 after it listens")
    add("--say", action="append", default=[], help="print this line first")
    add("--say-when-ready", default="")
    add("--exit", type=int, default=None, help="exit with this code instead of listening")
    add("--die-of", type=int, default=None, help="kill itself with this signal instead of listening")
    add("--ignore-term", action="store_true")
    add("--default-term", action="store_true", help="end on the spot at SIGTERM")
    add("--stop-delay", type=float, default=0.0, help="seconds from SIGTERM to the exit")
    add("--stop-code", type=int, default=0, help="exit code after SIGTERM")
    add("--exit-after", nargs=2, metavar=("SECONDS", "CODE"), help="exit at this moment, whatever it does then")
    add("--children", type=int, default=0)
    add("--say-children", action="store_true", help="print a line when the children are there")
    add("--stubborn-children", action="store_true", help="the children ignore SIGTERM")
    add("--forget-children", action="store_true", help="do not end the children at the stop")
    add("--setsid-child", action="store_true", help="one more child, in a session of its own")
    add("--daemon", action="store_true", help="leave a double-forked child in a session of its own")
    add("--tidy-daemon", action="store_true", help="such a child, but one that ends when this process does")
    add("--leak-port", action="store_true", help="leave such a child that listens on another port, and print which")
    add("--leak-shm", action="append", default=[], metavar="NAME", help="map a new /dev/shm/NAME, never remove it")
    add("--tidy-shm", action="append", default=[], metavar="NAME", help="the same, but remove it at SIGTERM")
    add("--make-shm", default="", metavar="NAME", help="map new objects NAME0, NAME1, ... without a pause, up to 3000")
    add("--attach-shm", action="append", default=[], metavar="NAME", help="map /dev/shm/NAME, which is there already")
    add("--leak-semaphore", action="append", default=[], metavar="NAME", help="sem_open(/NAME), never remove it")
    add("--tidy-semaphore", action="append", default=[], metavar="NAME", help="the same, but remove it at SIGTERM")
    add("--leak-sysv", action="store_true", help="attach a new SysV segment, never remove it, and print its id")
    add("--leak-socket", action="append", default=[], metavar="PATH", help="bind a unix socket; PATH is below TMPDIR")
    add("--leak-file", action="append", default=[], metavar="PATH", help="make a file; PATH is below TMPDIR")
    add("--wipe-environment", action="store_true", help="overwrite its arguments and environment, as setproctitle does")
    add("--rename", default="", metavar="TITLE", help="overwrite its arguments with this and take it for its name")
    add("--say-when-held", default="", help="print this when it has all its processes and objects")
    add("--flood-log", action="store_true", help="write up to 200 MB into the log, at full speed, all the time")
    add("--close-log", action="store_true", help="close stdout and stderr")
    add("--fork-chain", type=int, default=0, help="at SIGTERM: so many generations, each forks the next and ends")
    add("--fork-tree", type=int, default=0, help="at SIGTERM: so many children, all of which stay and ignore it")
    add("--idle-first-thread", action="store_true", help="serve in other threads; the first one waits for SIGTERM")
    add("--headless", action="store_true", help="end the first thread at SIGTERM and live on in another")
    add("--fork-bomb", type=int, default=0, help="at SIGTERM: forks of forks at full speed, so many in all")
    add("--mute", action="store_true", help="accept connections and neither read nor answer")
    add("--backlog-only", action="store_true", help="listen and never accept a connection")
    add("--garbage", action="store_true", help="answer what is not HTTP")
    add("--drip", action="store_true", help="answer one byte a second")
    add("--need-key", default="", help="answer 401 to who does not bring this key")
    add("--openapi", default="", help="comma-separated paths of /openapi.json")
    add("--profiler-config", default="", help="profile as vLLM 0.13 does; before, that is VLLM_TORCH_PROFILER_DIR")
    add("--sglang-profiler", action="store_true", help="profile as SGLang does, to the folder that the request names")
    add("--trace-delay", type=float, default=0.0, help="seconds in which a trace is written")
    add("--trace-late", action="store_true", help="answer before the trace is written")
    add("--no-trace", action="store_true", help="write no trace")
    add("--refuse-profile", default="", metavar="PATH", help="answer 500 to this request")
    add(
        "--hungry-child",
        type=int,
        metavar="CODE",
        help="a child that /feed lets eat; exit with CODE after its end, or be sick if that is negative",
    )
    add("--eat", type=int, default=0, metavar="BYTES", help="take so much memory before it listens")
    add(
        "--sleep-fault",
        default="",
        choices=("", "refuse", "hang", "freeze", "refuse-wake", "hang-wake", "die-at-wake", "sick-awake"),
        help="what goes wrong when it is told to sleep, or to wake",
    )
    add("--no-reuseaddr", action="store_true", help="listen without SO_REUSEADDR, as few servers do")
    add("--version", action="store_true")
    return parser.parse_known_args()[0]


HUNGRY = """
import sys
print('child', flush=True)
food = bytearray(int(sys.stdin.readline()))
sys.stdin.readline()
"""
CHILD = """
import signal, sys, time
if {stubborn}: signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('child', flush=True)
time.sleep(600)
"""
KEPT = []
"""Mappings and sockets, which would be closed if nobody held them."""


class Handler(socketserver.StreamRequestHandler):
    """HTTP/1.0 by hand: the imports of http.server would take longer than all the rest of a start."""

    options = None
    ready_at = 0.0
    sick = False
    sleeps = False
    trace_folder = None
    in_range = False

    def handle(self):
        method, self.path, *_ = [*self.rfile.readline().decode("latin-1").split(), "", ""]
        self.headers = {}
        while line := self.rfile.readline().decode("latin-1").strip():
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()
        if method == "GET":
            self.do_GET()
        elif method == "POST":
            self.do_POST()

    def reply(self, status, body):
        data = json.dumps(body).encode()
        head = f"HTTP/1.0 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        self.wfile.write(head.encode() + data)

    def do_GET(self):
        parts = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query))
        if self.options.need_key and self.headers.get("authorization") != f"Bearer {self.options.need_key}":
            self.reply(401, {})
        elif parts.path == "/health":
            loading = time.monotonic() < Handler.ready_at
            self.reply(503 if loading or Handler.sick else 200, {})
        elif parts.path == "/argv":
            self.reply(200, {"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "pid": os.getpid()})
        elif parts.path == "/v1/models":
            self.reply(200, {"data": [{"id": "fake"}]})
        elif parts.path == "/openapi.json" and self.options.openapi:
            self.reply(200, {"paths": {path: {} for path in self.options.openapi.split(",")}})
        elif parts.path == "/say":
            print(query["text"], flush=True)
            self.reply(200, {})
        elif parts.path == "/attach-shm":
            KEPT.append(map_shm(query["name"], os.O_RDWR))
            self.reply(200, {})
        elif parts.path == "/leak-shm":
            KEPT.append(map_shm(query["name"], os.O_RDWR | os.O_CREAT | os.O_EXCL))
            self.reply(200, {})
        elif parts.path == "/work":
            end = time.thread_time() + float(query["seconds"])
            while time.thread_time() < end:
                pass
            self.reply(200, {})
        elif parts.path == "/eat":
            KEPT.append(bytearray(int(query["bytes"])))
            self.reply(200, {})
        elif parts.path == "/feed":
            self.options.hungry.stdin.write(query["bytes"].encode() + b"\n")
            self.options.hungry.stdin.flush()
            self.reply(200, {"pid": self.options.hungry.pid})
        elif parts.path == "/is_sleeping":
            self.reply(200, {"is_sleeping": Handler.sleeps})
        elif parts.path == "/sick":
            Handler.sick = True
            self.reply(200, {})
        elif parts.path == "/flood":
            line = "x" * 99 + "\n"
            for _ in range(int(query["bytes"]) // 100_000):
                sys.stdout.write(line * 1000)
            self.reply(200, {})
        elif parts.path == "/exit":
            print(query.get("say", ""), flush=True)
            os._exit(int(query["code"]))
        elif parts.path == "/kill":
            os.kill(os.getpid(), int(query["signal"]))
            # Another thread may get the signal: the client must not hear of the end before it has come.
            time.sleep(1)
        else:
            self.reply(404, {})

    def do_POST(self):
        length = int(self.headers.get("content-length", 0))
        body = json.loads(self.rfile.read(length) or b"{}")
        if self.path == "/v1/completions":
            self.reply(200, {"choices": [{"text": body.get("prompt", "")[::-1]}]})
        elif self.path == "/v1/chat/completions":
            text = body["messages"][-1]["content"]
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text[::-1]}}
            self.reply(
                200, {"id": "1", "object": "chat.completion", "created": 1, "model": "fake", "choices": [choice]}
            )
        elif self.path == "/reset":
            note("POST /reset")
            self.reply(200, {})
        elif self.path.startswith(("/sleep?level=", "/wake_up", "/release_memory_", "/resume_memory_")):
            note(f"POST {self.path}")
            self.sleep_or_wake(self.path.startswith(("/sleep", "/release")))
        elif self.path in ("/start_profile", "/stop_profile"):
            note(f"POST {self.path}")
            if self.path == self.options.refuse_profile:
                self.reply(500, {"error": "no profile today"})
            else:
                self.profile(body)
        else:
            self.reply(404, {})

    def sleep_or_wake(self, falls_asleep):
        fault = self.options.sleep_fault
        if fault == ("refuse" if falls_asleep else "refuse-wake"):
            self.reply(500, {"error": "not today"})
        elif fault == ("hang" if falls_asleep else "hang-wake"):
            time.sleep(600)
        elif fault == "freeze" and falls_asleep:
            # Not one of its threads answers any more, to a signal neither.
            os.kill(os.getpid(), signal.SIGSTOP)
            # It may be a moment before this thread is stopped, too.
            time.sleep(600)
        elif fault == "die-at-wake" and not falls_asleep:
            os._exit(7)
        else:
            # As an engine without its memory it answers no health check.
            Handler.sleeps = falls_asleep
            Handler.sick = falls_asleep or fault == "sick-awake"
            self.reply(200, {})

    def profile(self, body):
        start = self.path == "/start_profile"
        settings = json.loads(self.options.profiler_config or "{}")
        folder = settings.get("torch_profiler_dir") or os.environ.get("VLLM_TORCH_PROFILER_DIR")
        if self.options.sglang_profiler:
            folder = body.get("output_dir") if start else Handler.trace_folder
        if settings.get("profiler") == "cuda" or "CUDA_PROFILER" in body.get("activities", []):
            Handler.in_range = start
            if start:
                # What cudaProfilerStart() tells the nsys around this process.
                with open(os.path.join(os.environ["FAKE_NSYS_SESSION"], "range"), "w"):
                    pass
            self.reply(200, {})
        elif Handler.in_range and not start:
            Handler.in_range = False
            self.reply(200, {})
        elif not folder and not self.options.sglang_profiler:
            self.reply(404, {})
        elif start:
            Handler.trace_folder = folder
            if "num_steps" in body:
                self.write_trace()
            self.reply(200, {})
        elif Handler.trace_folder is None:
            if self.options.sglang_profiler:
                self.reply(400, {"error": "Profiling is not in progress"})
            else:
                os._exit(1)
        elif self.options.trace_late:
            self.reply(200, {})
            self.write_trace()
        else:
            self.write_trace()
            self.reply(200, {})

    def write_trace(self):
        import gzip

        folder, Handler.trace_folder = Handler.trace_folder, None
        data = gzip.compress(json.dumps({"traceEvents": []}).encode())
        name = "1.5-TP-0.trace.json.gz" if self.options.sglang_profiler else "rank0.1.pt.trace.json.gz"
        if not self.options.no_trace:
            os.makedirs(folder, exist_ok=True)
            with open(os.path.join(folder, name), "wb", buffering=0) as file:
                file.write(data[:10])
                time.sleep(self.options.trace_delay)
                file.write(data[10:])


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


def note(event):
    """Write down what has happened, for a test of the order."""
    if "FAKE_EVENTS" in os.environ:
        with open(os.environ["FAKE_EVENTS"], "a") as file:
            file.write(event + "\n")


def write_rocprof():
    """Do at the end of the process what the library does that rocprofv3 loads."""
    folder = os.environ.get("FAKE_ROCPROF_OUTPUT")
    if folder:
        os.makedirs(f"{folder}/host", exist_ok=True)
        with open(f"{folder}/host/{os.getpid()}_results.pftrace", "w") as file:
            file.write("trace")


def bad_listener(options):
    listener = socket.create_server((options.host, options.port))
    kept = []
    if options.backlog_only:
        time.sleep(600)
    while True:
        connection, _ = listener.accept()
        kept.append(connection)
        if options.garbage:
            connection.sendall(b"\xff\x00garbage\n" * 10)
            connection.close()
        elif options.drip:
            threading.Thread(target=drip, args=(connection,), daemon=True).start()


def drip(connection):
    try:
        for byte in b"HTTP/1.1 200 OK\r\n" * 10:
            connection.sendall(bytes([byte]))
            time.sleep(1)
    except OSError:
        pass


def fork_chain(generations):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(generations):
        if os.fork():
            os._exit(0)
    time.sleep(600)


def fork_tree(count):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(count):
        if os.fork() == 0:
            time.sleep(600)
    time.sleep(600)


def fork_bomb(count):
    """Fork from forks without a pause; one in ten stays. Each fork takes a byte out of a pipe that holds ``count``."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tokens, filled = os.pipe()
    os.write(filled, b"\1\0\0\0\0\0\0\0\0\0" * (count // 10))
    os.close(filled)
    if os.fork():
        os._exit(0)
    while token := os.read(tokens, 1):
        if os.fork() and token == b"\0":
            os._exit(0)
    time.sleep(600)


def end_first_thread():
    import ctypes

    threading.Thread(target=time.sleep, args=(600,)).start()
    # SYS_exit ends the calling thread only, unlike exit().
    ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)


def start_child(options, **how):
    code = CHILD.format(stubborn=options.stubborn_children)
    if options.wipe_environment:
        how["env"] = {}
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE, **how)
    child.stdout.readline()
    return child


def start_hungry_child(code):
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", HUNGRY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()

    def mourn():
        child.wait()
        if code >= 0:
            os._exit(code)
        Handler.sick = True

    threading.Thread(target=mourn, daemon=True).start()
    return child


def start_daemon(body):
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                body()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def start_daemons(options):
    if options.daemon:
        start_daemon(lambda: time.sleep(600))
    if options.tidy_daemon:
        reads, writes = os.pipe()
        start_daemon(lambda: (os.close(writes), os.read(reads, 1)))
        os.close(reads)
    if options.leak_port:
        with socket.create_server((options.host, 0)) as listener:
            print("leaked port", listener.getsockname()[1], flush=True)
            start_daemon(lambda: time.sleep(600))


def overwrite_arguments(title, environment):
    """Overwrite what others see of the arguments, and of the environment too, as programs do to rename themselves."""
    import ctypes

    if title:
        ctypes.CDLL(None).prctl(15, title.encode(), 0, 0, 0)  # PR_SET_NAME
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    # Fields 48 to 51, counted from 1; the state is the third one.
    arg_start, arg_end, env_start, env_end = map(int, fields[45:49])
    if not arg_start:
        raise SystemExit("the system hides where the arguments are")
    text = title.encode()[: arg_end - arg_start - 1]
    ctypes.memmove(arg_start, text.ljust(arg_end - arg_start, b"\0"), arg_end - arg_start)
    if environment:
        ctypes.memset(env_start, 0, env_end - env_start)


def map_shm(name, flags):
    import mmap

    handle = os.open(f"/dev/shm/{name}", flags, 0o600)
    try:
        if flags & os.O_CREAT:
            os.ftruncate(handle, 4096)
        # The mapping stays when the descriptor is closed, which is all that many engines keep.
        return mmap.mmap(handle, 4096)
    finally:
        os.close(handle)


def open_semaphore(name):
    import ctypes

    if not ctypes.CDLL(None).sem_open(f"/{name}".encode(), os.O_CREAT | os.O_EXCL, 0o600, 1):
        raise SystemExit(f"no semaphore {name}")


def attach_sysv():
    import ctypes

    libc = ctypes.CDLL(None)
    libc.shmat.restype = ctypes.c_void_p
    number = libc.shmget(0, 4096, 0o1600)  # IPC_PRIVATE, IPC_CREAT
    libc.shmat(number, None, 0)
    print("leaked sysv", number, flush=True)


def take_objects(options):
    """Take what is asked for; return the paths of what has to be removed in the end."""
    folder = os.environ.get("TMPDIR", "/tmp")
    for name in options.attach_shm:
        KEPT.append(map_shm(name, os.O_RDWR))
    for name in options.leak_shm + options.tidy_shm:
        KEPT.append(map_shm(name, os.O_RDWR | os.O_CREAT | os.O_EXCL))
    for name in options.leak_semaphore + options.tidy_semaphore:
        open_semaphore(name)
    if options.leak_sysv:
        attach_sysv()
    for path in options.leak_socket:
        KEPT.append(socket.socket(socket.AF_UNIX))
        KEPT[-1].bind(os.path.join(folder, path))
        KEPT[-1].listen()
    for path in options.leak_file:
        with open(os.path.join(folder, path), "w") as file:
            file.write("left")
    tidied = options.tidy_shm + [f"sem.{name}" for name in options.tidy_semaphore]
    return [f"/dev/shm/{name}" for name in tidied]


def make_shm(name):
    for number in range(3000):
        KEPT.append(map_shm(f"{name}{number}", os.O_RDWR | os.O_CREAT | os.O_EXCL))
        time.sleep(0.001)


def flood():
    block = (b"x" * 99 + b"\n") * 1000
    for _ in range(2000):
        os.write(1, block)


def exit_later(seconds, code):
    time.sleep(seconds)
    os._exit(code)


def main():
    options = Handler.options = parse()
    if options.version:
        print("fake 1.0")
        return
    for line in options.say:
        print(line, flush=True)
    if options.wipe_environment or options.rename:
        overwrite_arguments(options.rename, options.wipe_environment)
    children = [start_child(options) for _ in range(options.children)]
    if options.setsid_child:
        children.append(start_child(options, start_new_session=True))
    if options.say_children:
        print("child", flush=True)
    if options.hungry_child is not None:
        options.hungry = start_hungry_child(options.hungry_child)
    removed_at_stop = take_objects(options)
    start_daemons(options)
    stops = []

    def tidy_up():
        for path in removed_at_stop:
            if os.path.exists(path):
                os.unlink(path)

    def stop(*_):
        if stops:
            return
        stops.append(1)
        note("SIGTERM")
        time.sleep(options.stop_delay)
        tidy_up()
        write_rocprof()
        if options.fork_chain:
            fork_chain(options.fork_chain)
        if options.fork_tree:
            fork_tree(options.fork_tree)
        if options.fork_bomb:
            fork_bomb(options.fork_bomb)
        if options.headless:
            end_first_thread()
        if not options.forget_children:
            for child in children:
                child.kill()
                child.wait()
        os._exit(options.stop_code)

    if not options.default_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN if options.ignore_term else stop)
    if options.say_when_held:
        print(options.say_when_held, flush=True)
    # Threads come after the forks, which would not take them along.
    if options.make_shm:
        threading.Thread(target=make_shm, args=(options.make_shm,), daemon=True).start()
    if options.flood_log:
        threading.Thread(target=flood, daemon=True).start()
    if options.exit_after:
        seconds, code = options.exit_after
        threading.Thread(target=exit_later, args=(float(seconds), int(code)), daemon=True).start()
    if options.close_log:
        os.close(1)
        os.close(2)
        sys.stdout = sys.stderr = None
    time.sleep(options.delay)
    while options.until and not os.path.exists(options.until):
        time.sleep(0.02)
    if options.eat:
        KEPT.append(bytearray(options.eat))
    if options.exit is not None:
        os._exit(options.exit)
    if options.die_of is not None:
        os.kill(os.getpid(), options.die_of)
    if options.mute or options.garbage or options.drip or options.backlog_only:
        bad_listener(options)
    Handler.ready_at = time.monotonic() + options.loading
    if ":" in options.host:
        Server.address_family = socket.AF_INET6
    Server.allow_reuse_address = not options.no_reuseaddr
    try:
        server = Server((options.host, options.port), Handler)
    except OSError:
        tidy_up()
        raise
    if options.say_when_ready:
        print(options.say_when_ready, flush=True)
    if options.idle_first_thread:
        for _ in range(4):
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        # It looks up for nothing but a request: py-spy shall find all of its threads idle.
        threading.Thread(target=server.serve_forever, args=(600,), daemon=True).start()
        signal.pause()
    server.serve_forever()


if __name__ == "__main__":
    main()

"""A stand-in for SGLang on several nodes: the fake engine as rank 0, and ranks that meet it at --dist-init-addr.

As SGLang 0.5.23 does it: a rank that is not the first ignores SIGTERM and ends with the first one, and the first one
ends soon after it has lost another.
"""

import argparse
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import fake_engine


def parse():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add = parser.add_argument
    add("--nnodes", type=int, required=True)
    add("--node-rank", type=int, required=True)
    add("--dist-init-addr", required=True)
    add("--host", required=True)
    add("--fail-rank", type=int, help="this one ends with an exception before it meets the others")
    add("--late-rank", type=int, help="this one does not come")
    add("--die-when", default="", metavar="PREFIX", help="rank N ends with code 9 when there is a file PREFIX-N")
    add("--slow-end", action="store_true", help="it has lost the others long before it ends")
    add("--calm", action="store_true", help="the first one does not mind the end of another")
    add("--leak-rank", default="", metavar="N:NAME", help="rank N leaves /dev/shm/NAME")
    return parser.parse_known_args()[0]


def watch_for_death(options):
    while options.die_when:
        if os.path.exists(f"{options.die_when}-{options.node_rank}"):
            if options.slow_end:
                print("Scheduler or DataParallelController 4711 terminated with -9", flush=True)
                fake_engine.KEPT[0].shutdown(socket.SHUT_RDWR)
                time.sleep(3)
            print(f"RuntimeError: rank {options.node_rank} was told to die", flush=True)
            os._exit(9)
        time.sleep(0.02)


def lead(options, address):
    """Wait for all others; return when all are there."""
    listener = socket.create_server(address)
    seen = {}
    while len(seen) < options.nnodes - 1:
        connection, _ = listener.accept()
        rank = int(connection.makefile().readline())
        assert rank not in seen, rank
        seen[rank] = connection
        threading.Thread(target=lose, args=(options, connection), daemon=True).start()
    assert sorted(seen) == list(range(1, options.nnodes)), seen
    for connection in seen.values():
        connection.sendall(b"go\n")
    print(f"all {options.nnodes} ranks are here", flush=True)
    return seen


def lose(options, connection):
    connection.settimeout(None)
    while connection.recv(100):
        pass
    if not options.calm:
        print("RuntimeError: Connection closed by peer", flush=True)
        os._exit(1)


def follow(options, address):
    signal.signal(signal.SIGTERM, lambda *_: print("SIGTERM: waits for rank 0", flush=True))
    while True:
        try:
            connection = socket.create_connection(address)
            break
        except OSError:
            time.sleep(0.05)
    fake_engine.KEPT.insert(0, connection)
    connection.sendall(f"{options.node_rank}\n".encode())
    assert connection.recv(3) == b"go\n"
    print(f"rank {options.node_rank} of {options.nnodes} runs on {options.host}", flush=True)
    try:
        while connection.recv(1):
            pass
    except ConnectionError:
        pass
    if options.slow_end:
        time.sleep(600)
    print(f"rank {options.node_rank} ends with rank 0", flush=True)


def main():
    options = parse()
    print(f"rank {options.node_rank} sees CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')}", flush=True)
    if options.fail_rank == options.node_rank:
        print("ValueError: this rank has no such layer", flush=True)
        os._exit(3)
    if options.late_rank == options.node_rank:
        time.sleep(600)
    rank, _, name = options.leak_rank.partition(":")
    if rank and int(rank) == options.node_rank:
        kept = fake_engine.map_shm(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        assert kept is not None
        fake_engine.KEPT.append(kept)
    host, _, port = options.dist_init_addr.rpartition(":")
    threading.Thread(target=watch_for_death, args=(options,), daemon=True).start()
    if options.node_rank:
        follow(options, (host, int(port)))
    else:
        kept = lead(options, (host, int(port)))
        assert len(kept) == options.nnodes - 1
        fake_engine.main()


if __name__ == "__main__":
    main()

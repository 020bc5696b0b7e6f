"""The command: an API server, and the engine in a process that it spawns."""

import argparse
import multiprocessing
import os
import sys
import threading
from pathlib import Path

sys.path.append(str(Path(__file__).parents[5]))

import fake_engine

from vllm.engine.arg_utils import AsyncEngineArgs


def run_engine(config, channel):
    """Do what RayExecutorV2 does: a worker in each bundle that has a GPU."""
    import ray
    from ray.util import placement_group_table
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    threading.Thread(target=end_with, args=(channel,), daemon=True).start()
    # Without an address, as vLLM does it.
    ray.init()
    group = config.parallel_config.placement_group
    assert group, "no placement group"
    bundles = group.bundle_specs
    assert all(bundle.get("GPU", 0) <= 1 for bundle in bundles), bundles
    usable = [index for index, bundle in enumerate(bundles) if bundle.get("GPU")]
    assert len(usable) >= config.parallel_config.world_size, bundles
    places = placement_group_table(group)["bundles_to_node_id"]

    class RayWorkerProc:
        def where(self):
            context = ray.get_runtime_context()
            return context.get_node_id(), context.get_accelerator_ids()["GPU"], os.getpid()

        def run(self):
            threading.Event().wait()

    workers = [
        ray.remote(RayWorkerProc)
        .options(
            num_cpus=0,
            num_gpus=1,
            max_concurrency=2,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
        )
        .remote()
        for index in usable[: config.parallel_config.world_size]
    ]
    for index, (node, gpus, pid) in enumerate(ray.get([worker.where.remote() for worker in workers])):
        assert node == places[usable[index]]
        print(f"worker {index} on {node} has GPU {gpus} pid {pid}", flush=True)
    channel.send("ready")
    runs = [worker.run.remote() for worker in workers]
    ray.wait(runs, num_returns=1)
    print("RayWorkerProc rank=[?] died unexpectedly, shutting down executor.", flush=True)
    os._exit(1)


def end_with(channel):
    channel.poll(None)
    os._exit(0)


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("verb")
    parser.add_argument("model")
    parser.add_argument("--distributed-executor-backend", required=True)
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--pipeline-parallel-size", type=int, default=1)
    options = parser.parse_known_args()[0]
    assert options.verb == "serve"
    assert options.distributed_executor_backend == "ray"
    assert Path(sys.argv[0]).name == "vllm", sys.argv[0]
    print(f"the API server sees CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')}", flush=True)
    size = options.tensor_parallel_size * options.pipeline_parallel_size
    config = AsyncEngineArgs(size).create_engine_config(usage_context="API_SERVER")
    ours, theirs = multiprocessing.Pipe()
    engine = multiprocessing.get_context("spawn").Process(target=run_engine, args=(config, theirs))
    engine.start()
    theirs.close()
    try:
        assert ours.recv() == "ready"
    except EOFError:
        sys.exit("Engine core initialization failed")

    def mourn():
        engine.join()
        print("EngineDeadError: the engine is dead", flush=True)
        os._exit(1)

    threading.Thread(target=mourn, daemon=True).start()
    fake_engine.main()

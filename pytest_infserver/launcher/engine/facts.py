"""What a backend says of its engine: how its options, endpoints and log lines are called in the versions it knows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from pytest_infserver.launcher.engine.address_flags import GENERIC, AddressFlags
from pytest_infserver.launcher.engine.changed_options import ChangedOption
from pytest_infserver.launcher.engine.known_options.option_table import OptionTable
from pytest_infserver.launcher.engine.sleep_requests import SleepRequests
from pytest_infserver.launcher.profiling.endpoints import ProfileEndpoints
from pytest_infserver.launcher.share import SeveralNodes
from pytest_infserver.launcher.startup.phases import Phase


class EngineFacts:
    """Facts about an engine, with values for one of which nothing is known.

    Attributes:
        install_hint: One sentence: how the engine is installed.
        packages: Names under which the engine is distributed, for the question which version is installed.
        changed_options: Options that newer versions of the engine do not have any more.
        requires_model: Whether the backend cannot do without ``model``.
        takes_entrypoint: Whether the user may say with which words it is started.
        model_sources: Flags, as patterns, and variables that name models in another way than ``model``.
        config_keys: Keys allowed in ``config``; None allows any.
        reserved_options: Flags that the launch command sets itself, and the key that the user sets instead.
        drawn_ports: Ports among which the engine draws some for itself, besides those that the system gives out.
        endpoint_paths: Name to path of the engine's endpoints.
        mounted_endpoints: Names of those that the engine does not list in its ``/openapi.json``.
        name_options: Options that name the model for requests.
        adapter_options: Options that name LoRA adapters, as in name=path.
        address_flags: By which flags it is told where it is reached.
        api_key_variables: Environment variables from which the engine takes its API key.
        fatal_patterns: Log lines after which the server will not become ready.
        cause_patterns: Log lines that explain a failure, the most telling first.
        noise_patterns: Log lines that look like the cause of a failure and are not.
        download_patterns: Log lines that say that weights are being downloaded.
        first_phase: What the engine does before its log tells of a phase.
        phases: Log lines that tell what the engine is doing while it starts.
        sleep_requests: By which requests it sleeps and wakes, or None if it does not.
        known_leftovers: What the engine is known to leave behind, as in ``allow_leaks``.
        torch_endpoints: How it is told to use PyTorch's profiler, or None.
        cuda_endpoints: How it is told to call cudaProfilerStart and cudaProfilerStop, or None.
        nsys_variables: Environment variables that it needs under nsys.
        py_spy_args: What py-spy needs to see it at work.
        works_in_native_code: Whether its work is done in native code, which py-spy sees with ``--native`` only.
        uses_gpus: Whether the engine takes all GPUs that it sees if its arguments do not say how many.
        parallel_sizes: Options whose product is the number of GPUs; each with all its spellings, the name first.
        inner_sizes: The name of such an option to a flag with which it is a part of the others.
        local_sizes: The name of such an option to the spellings of the one that says how much of it is this server's.
        rank_options: The name of such an option to the spellings of those that make the server one rank of it.
        node_counts: Spellings of the option that says among how many machines these GPUs are divided.
        several_nodes: How the engine runs on several nodes of a cluster, or None if it does not.
        node_options: Flags that a server on several nodes must not be given, and why not.
        node_settings: Options that it is given; the user may write the same.
    """

    install_hint: ClassVar[str] = ""
    packages: ClassVar[Sequence[str]] = ()
    changed_options: ClassVar[Sequence[ChangedOption]] = ()
    requires_model: ClassVar[bool] = True
    takes_entrypoint: ClassVar[bool] = False
    model_sources: ClassVar[Sequence[str]] = ()
    config_keys: ClassVar[frozenset[str] | None] = None
    reserved_options: ClassVar[Mapping[str, str]] = {}
    drawn_ports: ClassVar[range] = range(0)
    endpoint_paths: ClassVar[Mapping[str, str]] = {"health": "/health"}
    mounted_endpoints: ClassVar[frozenset[str]] = frozenset()
    name_options: ClassVar[Sequence[str]] = ("--served-model-name", "--alias")
    adapter_options: ClassVar[Sequence[str]] = ("--lora-modules", "--lora-paths")
    address_flags: ClassVar[AddressFlags] = GENERIC
    api_key_variables: ClassVar[Sequence[str]] = ()
    fatal_patterns: ClassVar[Sequence[re.Pattern[bytes]]] = ()
    cause_patterns: ClassVar[Sequence[re.Pattern[bytes]]] = ()
    noise_patterns: ClassVar[Sequence[re.Pattern[bytes]]] = ()
    download_patterns: ClassVar[Sequence[re.Pattern[bytes]]] = ()
    first_phase: ClassVar[str] = "starting"
    phases: ClassVar[Sequence[Phase]] = ()
    known_leftovers: ClassVar[Sequence[str]] = ()
    sleep_requests: ClassVar[SleepRequests | None] = None
    torch_endpoints: ClassVar[ProfileEndpoints | None] = None
    cuda_endpoints: ClassVar[ProfileEndpoints | None] = None
    nsys_variables: ClassVar[Mapping[str, str]] = {}
    py_spy_args: ClassVar[Sequence[str]] = ()
    works_in_native_code: ClassVar[bool] = False
    uses_gpus: ClassVar[bool] = False
    parallel_sizes: ClassVar[Sequence[Sequence[str]]] = ()
    inner_sizes: ClassVar[Mapping[str, str]] = {}
    local_sizes: ClassVar[Mapping[str, Sequence[str]]] = {}
    rank_options: ClassVar[Mapping[str, Sequence[str]]] = {}
    node_counts: ClassVar[Sequence[str]] = ()
    several_nodes: ClassVar[SeveralNodes | None] = None
    node_options: ClassVar[Mapping[str, str]] = {}
    node_settings: ClassVar[Mapping[str, str]] = {}

    @property
    def options_entry(self) -> Sequence[str] | None:
        """The words that start the engine, without arguments, if ``--help`` behind them shows all that it accepts."""
        return None

    @property
    def own_options(self) -> OptionTable | None:
        """What the engine accepts, if this package knows that without asking it."""
        return None

    @property
    def prints_options(self) -> bool:
        """Whether it is no Python program, and prints all options for ``--help`` in the way that is understood."""
        return False

    def derived_ports(self, port: int) -> Sequence[int]:
        """Return the ports that the engine takes besides ``port``, because it derives them from it."""
        return ()

    def meeting_ports(self, port: int) -> Sequence[int]:
        """Return the ports that the engine takes besides the one where the ranks of several nodes meet."""
        return ()

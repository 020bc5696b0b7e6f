"""The examples for engines run as they stand; what a machine without a GPU needs is in the environment.

That with the engine which starts soonest runs in .ci/run, the others in .ci/nightly.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import HARD_LIMIT, HERE
from .provision import environment, models_dir

ROOT = HERE.parent.parent
FOR_CPU = {
    "HF_HUB_OFFLINE": "1",
    "DEVICE": "cpu",
    "DTYPE": "float32",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "SGLANG_USE_CPU_ENGINE": "1",
}
FOR_STUBBED_KERNELS = """\
#!{bin}/python
import os, sys
options = "--device cpu --attention-backend torch_native --sampling-backend pytorch --grammar-backend none"
options += " --disable-overlap-schedule --max-total-tokens 4096 --dtype float32"
os.execv("{bin}/sglang", ["sglang", *sys.argv[1:], *options.split()])
"""
"""An ``sglang`` command that adds what SGLang needs where its kernels are stubs: see stubs/sgl_kernel."""


@pytest.fixture
def sglang(tmp_path: Path) -> Path:
    """An ``sglang`` command for stubbed kernels."""
    command = tmp_path / "bin" / "sglang"
    command.parent.mkdir()
    command.write_text(FOR_STUBBED_KERNELS.format(bin=environment("sglang") / "bin"))
    command.chmod(0o755)
    return command


def run_example(folder: str, model: str | None, output_dir: Path, sglang: Path | str = "sglang") -> list[str]:
    engines = {
        "VLLM_BINARY": environment("vllm") / "bin" / "vllm",
        "SGLANG_BINARY": sglang,
        "TRANSFORMERS_BINARY": environment("transformers") / "bin" / "transformers",
        "LM_EVAL": environment("lm_eval") / "bin" / "lm_eval",
        "INFSERVER_OUTPUT_DIR": output_dir,
    }
    if model is not None:
        engines["MODEL"] = models_dir() / model
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rP", f"conftest_examples/{folder}"],
        cwd=ROOT,
        env={**os.environ, **FOR_CPU, **{name: str(value) for name, value in engines.items()}},
        capture_output=True,
        text=True,
        timeout=HARD_LIMIT,
        check=False,
    )
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()


@pytest.mark.usefixtures("no_engine_left")
class TestExamples:
    @pytest.mark.nightly
    @pytest.mark.engine("vllm")
    def test_vllm_with_tensor_parallel_and_both_kinds_of_arguments(self, tmp_path: Path) -> None:
        lines = run_example("vllm", "tiny", tmp_path)
        assert "7 passed" in lines[-1]
        assert any("has no --disable-log-requests" in line for line in lines)

    @pytest.mark.nightly
    @pytest.mark.engine("sglang")
    def test_sglang_with_stubbed_kernels(self, tmp_path: Path, sglang: Path) -> None:
        assert "4 passed" in run_example("sglang", "tiny", tmp_path, sglang)[-1]

    @pytest.mark.engine("transformers")
    def test_transformers(self, tmp_path: Path) -> None:
        assert "3 passed" in run_example("transformers", "tiny", tmp_path)[-1]

    @pytest.mark.nightly
    @pytest.mark.engine("lm_eval")
    def test_lm_eval(self, tmp_path: Path) -> None:
        lines = run_example("lm_eval", None, tmp_path)
        assert any(line.startswith("sums ") for line in lines)
        assert "1 passed" in lines[-1]

    @pytest.mark.nightly
    @pytest.mark.engine("vllm", "sglang", "transformers")
    def test_all_engines_give_the_same_answers(self, tmp_path: Path, sglang: Path) -> None:
        """SGLang runs with stubbed kernels; its share of the arithmetic is PyTorch's."""
        lines = run_example("compare_engines", "smollm2", tmp_path, sglang)
        assert "8 passed" in lines[-1]
        france = ("The capital of France is Paris.", 42, 8)
        for engine in ("llamacpp", "transformers", "vllm", "sglang"):
            assert f"{engine}: {france!r}" in lines
        assert not [line for line in lines if re.search(r"\bdiffer\b", line)]

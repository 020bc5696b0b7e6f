"""lm_eval on a leased server, offline: LM_EVAL names its command where it is not on PATH."""

import json
import os
import subprocess
from pathlib import Path

HERE = Path(__file__).parent


def test_sums(inference_server, inference_score, tmp_path):
    arguments = {
        "base_url": inference_server.url_for("/v1/completions"),
        "model": inference_server.api_model,
        "tokenizer_backend": "None",
        "tokenized_requests": "False",
        "num_concurrent": "2",
    }
    command = [
        os.environ.get("LM_EVAL", "lm_eval"),
        *("--model", "local-completions"),
        *("--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())),
        *("--tasks", "sums", "--include_path", str(HERE / "tasks"), "--output_path", str(tmp_path)),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    subprocess.run(command, cwd=HERE / "tasks", env={**os.environ, **offline}, check=True, timeout=300)
    (file,) = tmp_path.rglob("results*.json")
    result = json.loads(file.read_text())["results"]["sums"]
    # A random model is right by chance alone; give a real one a real limit.
    inference_score("sums", result["exact_match,none"], min=0.0)

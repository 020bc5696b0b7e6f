"""Log lines that say that weights are being downloaded, and lines that look alike."""

from __future__ import annotations

import pytest

from pytest_infserver import SGLangServer, TransformersServer, VLLMServer


@pytest.mark.parametrize(
    ("line", "downloading"),
    [
        ("model-00001-of-00002.safetensors:  43%|####3     | 2.14G/4.98G [00:41<00:52, 54.0MB/s]", True),
        ("Fetching 8 files:  25%|##5       | 2/8 [00:03<00:09,  1.6s/it]", True),
        ("Downloading shards:  50%|#####     | 1/2 [00:30<00:30, 30.1s/it]", True),
        ("Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:01<00:01,  1.0s/it]", False),
        ("INFO 11-22 19:00:01 loading model.safetensors from the cache", False),
    ],
)
@pytest.mark.parametrize("backend", [VLLMServer, SGLangServer, TransformersServer])
def test_download_lines(backend: type[VLLMServer], line: str, downloading: bool) -> None:
    assert any(pattern.search(line.encode()) for pattern in backend.download_patterns) is downloading

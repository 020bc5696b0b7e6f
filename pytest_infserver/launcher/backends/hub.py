"""What engines that take their weights from a model hub have in common."""

from __future__ import annotations

import re

HUB_DOWNLOADS = (
    re.compile(rb"\.(?:safetensors|bin|gguf|json|pt|model): +\d+%\|"),
    re.compile(rb"Fetching \d+ files: +\d+%|Downloading .+: +\d+%"),
)
"""Progress bars of huggingface_hub and of tqdm around it."""

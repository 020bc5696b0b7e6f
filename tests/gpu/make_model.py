"""Makes a Llama with random weights, of so many layers: python make_model.py FOLDER WIDTH LAYERS DEVICE.

A layer has 16 * WIDTH^2 weights of 2 bytes. It is run by the interpreter that has torch and transformers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))
from make_models import make_tiny


def make(folder: Path, width: int, layers: int, device: str) -> None:
    """Write the model, with the tokenizer of the tiny one."""
    make_tiny(folder)
    tiny = AutoConfig.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=tiny.vocab_size,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        num_key_value_heads=width // 128,
        max_position_embeddings=1024,
        bos_token_id=tiny.bos_token_id,
        eos_token_id=tiny.eos_token_id,
        pad_token_id=tiny.pad_token_id,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])

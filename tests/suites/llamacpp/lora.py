"""Writes a LoRA adapter for builtin:tiny: of rank 1, on one matrix, with weights that change what it says."""

import struct
import sys

WIDTH = 64
TENSORS = {"blk.0.attn_output.weight.lora_a": (WIDTH, 1), "blk.0.attn_output.weight.lora_b": (1, WIDTH)}
TEXT, FLOAT, ALIGNMENT = 8, 6, 32


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def adapter():
    """Return the bytes of a GGUF file."""
    words = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(TENSORS), len(words) + 1)
    head += b"".join(text(key) + struct.pack("<I", TEXT) + text(value) for key, value in words.items())
    head += text("adapter.lora.alpha") + struct.pack("<If", FLOAT, 1.0)
    data = b""
    for name, shape in TENSORS.items():
        head += text(name) + struct.pack("<IQQIQ", 2, *shape, 0, len(data))
        data += struct.pack(f"<{WIDTH}f", *(3 * (-1) ** (index // 3) for index in range(WIDTH)))
    return head + bytes(-len(head) % ALIGNMENT) + data


if __name__ == "__main__":
    sys.stdout.buffer.write(adapter())

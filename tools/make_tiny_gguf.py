"""Write `tiny.gguf`: `python tools/make_tiny_gguf.py OUT`.

The model means nothing and knows nothing, but it behaves well in tests. Its weights are random, except that
each word's likeliest successor is planted in the output matrix, so that:

- at temperature 0 it always says the same readable sentence, whatever the prompt;
- at higher temperatures it jumps between words, so that different seeds give different texts;
- a double quote comes round every few words, so that strings in grammar-constrained JSON end;
- it knows the tokens for filling a gap, which say nothing to it;
- it never ends a text by itself (a grammar or `max_tokens` does) and never emits half a UTF-8 character.

The same bytes come out on every machine and with every version of numpy: all numbers are drawn as integers
from numpy's frozen legacy generator and scaled by powers of two.
"""

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

SEED = 20261
WIDTH = 64
FEED_FORWARD = 64
HEADS = 4
CONTEXT_LENGTH = 4096

SENTENCE = "this tiny model knows only a few words and says them in order ."
"""What the model says for ever at temperature 0, with a double quote after the full stop."""

PHRASES = {
    "you will see that": "this",
    "it was not the": "tiny",
    "he has one": "model",
    "she also": "knows",
    "there are": "only",
    "we can be": "a",
    "some of": "few",
    "to my": "words",
    "for us ,": "and",
    "which all": "them",
    "on time or": "in",
}
"""Words outside the sentence, each followed by the next, the last one by a word of the sentence."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

FIM_TOKENS = {"pre": "<|fim_prefix|>", "suf": "<|fim_suffix|>", "mid": "<|fim_middle|>"}
"""For /infill: what stands before and behind a gap, and where the text for it begins. The last tokens there are."""

# How strongly a token follows its predecessor, and how likely each kind of token is otherwise: in units of
# the logit, where words are at 0.
FOLLOW = 6.0
KIND_LOGIT = {"word": 0.0, "digit": -5.0, "other": -7.0}
KIND_LOGIT |= {".": -1.0, '"': -1.0, "}": -2.0, "]": -2.0, ",": -3.0, ":": -3.0}
NEVER_LOGIT = -48.0


def _piece(word: str) -> str:
    return "\u2581" + word if word.isalpha() else word


def vocabulary() -> tuple[list[str], list[int], dict[str, str]]:
    """Return the tokens, their GGUF token types, and for each word piece the piece planted after it.

    Every beginning of a word is a token too, because the tokenizer builds a word by joining pairs.
    """
    sentence = [*SENTENCE.split(), '"']
    chains = [[*sentence, sentence[0]], *([*phrase.split(), goal] for phrase, goal in PHRASES.items())]
    follows = {_piece(one): _piece(next_one) for chain in chains for one, next_one in pairwise(chain)}
    letters = ["\u2581", *map(chr, range(0x21, 0x7F))]
    beginnings = sorted({word[:end] for word in follows for end in range(2, len(word) + 1)} - set(letters))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *beginnings]
    types = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    types += [gguf.TokenType.BYTE] * 256
    types += [gguf.TokenType.NORMAL] * (len(tokens) - len(types))
    tokens += FIM_TOKENS.values()
    types += [gguf.TokenType.CONTROL] * len(FIM_TOKENS)
    return tokens, [int(kind) for kind in types], follows


def _kind(token: str, follows: dict[str, str]) -> str:
    if token in KIND_LOGIT:
        return token
    if token in follows:
        return "word"
    return "digit" if token.isdigit() else "other"


def tensors(tokens: list[str], types: list[int], follows: dict[str, str]) -> dict[str, NDArray[np.float32]]:
    """Return the model's weights by GGUF tensor name.

    Component 0 of every hidden state is a constant (nothing writes to it), which turns column 0 of the output
    matrix into a bias per token.

    Args:
        tokens: The vocabulary.
        types: The GGUF token type of each token.
        follows: For each piece, the piece planted after it.
    """
    random = np.random.RandomState(SEED)

    def noise(rows: int, columns: int, scale: float) -> NDArray[np.float32]:
        return (random.randint(-128, 128, size=(rows, columns)) * (scale / 128)).astype(np.float32)

    # The marks of a gap came later: they have no part in what the others were drawn from.
    words = len(tokens) - len(FIM_TOKENS)
    signs = np.ones((len(tokens), WIDTH), dtype=np.float32)
    signs[:words] = random.randint(0, 2, size=(words, WIDTH)) * 2 - 1
    signs[words:, 1:] = np.random.RandomState(SEED + 1).randint(0, 2, size=(len(FIM_TOKENS), WIDTH - 1)) * 2 - 1
    signs[:, 0] = 1.0
    output = np.zeros_like(signs)
    for before, after in follows.items():
        output[tokens.index(after)] += signs[tokens.index(before)] * (FOLLOW / WIDTH)
    output[:words] += noise(words, WIDTH, 0.25)
    for index, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        normal = kind == gguf.TokenType.NORMAL
        output[index, 0] = KIND_LOGIT[_kind(token, follows)] if normal else NEVER_LOGIT
    weights = {
        "token_embd.weight": signs,
        "output_norm.weight": np.ones(WIDTH, dtype=np.float32),
        "output.weight": output,
        "blk.0.attn_norm.weight": np.ones(WIDTH, dtype=np.float32),
        "blk.0.ffn_norm.weight": np.ones(WIDTH, dtype=np.float32),
    }
    for name, rows, columns in (
        ("attn_q", WIDTH, WIDTH),
        ("attn_k", WIDTH, WIDTH),
        ("attn_v", WIDTH, WIDTH),
        ("attn_output", WIDTH, WIDTH),
        ("ffn_gate", FEED_FORWARD, WIDTH),
        ("ffn_up", FEED_FORWARD, WIDTH),
        ("ffn_down", WIDTH, FEED_FORWARD),
    ):
        weights[f"blk.0.{name}.weight"] = noise(rows, columns, 0.125)
    weights["blk.0.attn_output.weight"][0] = 0.0
    weights["blk.0.ffn_down.weight"][0] = 0.0
    return weights


def write(out: Path) -> None:
    """Write the model.

    Args:
        out: The GGUF file to write; one that is there is replaced.

    Raises:
        OSError: The file cannot be written.
    """
    tokens, types, follows = vocabulary()
    # An untyped name, because gguf's annotations vary between its versions.
    writer: Any = gguf.GGUFWriter(out, "llama")
    writer.add_name("pytest-infserver tiny")
    writer.add_description("Random weights with planted word order, for tests of inference servers")
    writer.add_license("Apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([float(len(token)) for token in tokens])
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, token in FIM_TOKENS.items():
        writer.add_uint32(f"tokenizer.ggml.fim_{name}_token_id", tokens.index(token))
    writer.add_add_bos_token(True)
    # With a space put before every text, the chat template's "assistant:" would not fit the grammars that
    # llama.cpp makes for `response_format`: it answers such requests with 400.
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, weight in tensors(tokens, types, follows).items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(argv: list[str] | None = None) -> int:
    """Write the model to the path given on the command line.

    Args:
        argv: The arguments without the program's name; those of this process when None.

    Returns:
        The exit status: 0, or 2 when the arguments are wrong.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write("usage: python tools/make_tiny_gguf.py OUT\n")
        return 2
    write(Path(arguments[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

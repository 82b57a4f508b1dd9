"""Write CLIP's byte-pair encoding as a tokenizer.json, from OpenAI's list of merges.

Run: python tools/make_tokenizer.py bpe_simple_vocab_16e6.txt.gz
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

TARGET = Path(__file__).parents[1] / "src/madclip/backbones/vocab/tokenizer.json"
MERGES = 49152 - 256 - 2
"""The file lists more merges than CLIP uses: 49,408 ids are 256 bytes, 256 word-final bytes, these and two specials."""
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def byte_symbols() -> list[str]:
    """A printable character for each byte, in the order in which CLIP numbers them (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def build(merges_file: Path) -> Tokenizer:
    """CLIP's tokenizer: clean white space, lower case, words, byte-pair encoding with a mark at word ends."""
    lines = gzip.decompress(merges_file.read_bytes()).decode("utf-8").split("\n")[1 : MERGES + 1]
    merges = [(left, right) for left, right in (line.split() for line in lines)]
    symbols = byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *(left + right for left, right in merges)]
    specials = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens + specials)}
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary, merges, end_of_word_suffix="</w>", unk_token="<|endoftext|>", continuing_subword_prefix=""
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in specials])
    return tokenizer


def main() -> None:
    """Write the file compactly, under a temporary name first."""
    temporary = TARGET.with_suffix(".tmp")
    content = json.loads(build(Path(sys.argv[1])).to_str())
    temporary.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    temporary.replace(TARGET)
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

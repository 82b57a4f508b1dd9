"""Text to token ids: CLIP's byte-pair encoding, which ships with the package, or the tokenizer beside the weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madclip.errors import CheckpointError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CLIP_VOCABULARY = Path(__file__).parent / "vocab" / "tokenizer.json"
SIGLIP_FILES = ("tokenizer.json", "spiece.model")


@dataclass(frozen=True)
class Tokenizer:
    """A text's ids stand between `start_ids` and `end_ids`; `pad_id` fills the rest.

    Attributes:
        encode: Ids of each text, without start, end and padding, of any length.
        start_ids: Before every text.
        end_ids: After every text.
        pad_id: Filling.
        size: Number of ids.
        source: The file it came from.
    """

    encode: Callable[[Sequence[str]], list[list[int]]]
    start_ids: list[int]
    end_ids: list[int]
    pad_id: int
    size: int
    source: Path


def clip_tokenizer(folder: Path | None) -> Tokenizer:
    """The tokenizer of a CLIP: the one in its folder, else OpenAI's vocabulary.

    Args:
        folder: Where `tokenizer.json`, or `vocab.json` and `merges.txt`, may be.

    Raises:
        CheckpointError: The folder's tokenizer cannot be read.
    """
    if folder and not (folder / "tokenizer.json").is_file() and (folder / "merges.txt").is_file():
        return _from_transformers(folder, "CLIPTokenizer", pad_id=0)
    file = folder / "tokenizer.json" if folder else CLIP_VOCABULARY
    return _from_tokenizers(file if file.is_file() else CLIP_VOCABULARY)


def siglip_tokenizer(folder: Path | None) -> Tokenizer:
    """The tokenizer beside a SigLIP's weights; SigLIP's vocabularies are not in the package.

    Raises:
        CheckpointError: There is none, or it cannot be read.
        MissingExtraError: It is a SentencePiece file and that library is missing.
    """
    if folder is None or not any((folder / name).is_file() for name in SIGLIP_FILES):
        where = folder or "the weights' folder"
        raise CheckpointError(f"{where} has no tokenizer: put the model's {' or '.join(SIGLIP_FILES)} there")
    return _from_transformers(folder, "AutoTokenizer", pad_id=None)


def _from_tokenizers(file: Path) -> Tokenizer:
    import tokenizers

    try:
        inner = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 -- the library raises bare Exception
        raise CheckpointError(f"{file} is not a tokenizer of the tokenizers library: {_first_line(error)}") from None
    inner.no_padding()
    inner.no_truncation()
    start, end = inner.token_to_id("<|startoftext|>"), inner.token_to_id("<|endoftext|>")
    if start is None or end is None:
        raise CheckpointError(f"{file} lacks CLIP's <|startoftext|> or <|endoftext|>: use the tokenizer of the weights")

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in inner.encode_batch(list(texts), add_special_tokens=False)]

    # OpenAI pads with 0. Under the causal mask any id would do; without it, 0 is what the released code attends to.
    return Tokenizer(encode, [start], [end], 0, inner.get_vocab_size(), file)


def _from_transformers(folder: Path, kind: str, pad_id: int | None) -> Tokenizer:
    import transformers

    try:
        inner: Any = getattr(transformers, kind).from_pretrained(folder, local_files_only=True)
    except ImportError:
        raise MissingExtraError(
            f"the tokenizer in {folder} needs SentencePiece: pip install sentencepiece protobuf"
        ) from None
    except Exception as error:  # noqa: BLE001 -- whatever a damaged file makes the library raise
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {_first_line(error)}") from None

    def encode(texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = inner(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        return ids

    [bare], whole = encode(["a"]), inner("a")["input_ids"]
    at = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    pad = inner.pad_token_id if pad_id is None else pad_id
    return Tokenizer(encode, whole[:at], whole[at + len(bare) :], pad or 0, len(inner), folder)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

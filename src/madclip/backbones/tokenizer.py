"""Text to token ids: CLIP's byte-pair encoding, which ships with the package, or the tokenizer beside the weights."""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madclip.backbones.checkpoints import read_json
from madclip.errors import CheckpointError, MissingExtraError
from madclip.files import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CLIP_VOCABULARY = Path(__file__).parent / "vocab" / "tokenizer.json"


@dataclass(frozen=True)
class Tokenizer:
    """A text's ids stand between `start_ids` and `end_ids`; `pad_id` fills the rest.

    Attributes:
        encode: Ids of each text, without start, end and padding, of any length.
        start_ids: Before every text.
        end_ids: After every text.
        pad_id: Filling.
        size: Number of ids.
        source: The file or folder it came from.
        pieces: The id of each piece of text that has one, as the tokenizer spells pieces.
    """

    encode: Callable[[Sequence[str]], list[list[int]]]
    start_ids: list[int]
    end_ids: list[int]
    pad_id: int
    size: int
    source: Path
    pieces: Callable[[], dict[str, int]]

    def words(self) -> dict[int, str]:
        """The whole words among the ids, in ASCII letters.

        CLIP ends a word by </w>, SentencePiece begins it by a bar; WordPiece marks what is not the beginning of one.
        """
        pieces = self.pieces()
        found = {number: piece.removesuffix("</w>") for piece, number in pieces.items() if piece.endswith("</w>")}
        found = found or {number: piece[1:] for piece, number in pieces.items() if piece.startswith("\u2581")}
        found = found or {number: piece for piece, number in pieces.items()}
        return {n: word for n, word in found.items() if len(word) > 1 and word.isascii() and word.isalpha()}


def clip_tokenizer(folder: Path | None) -> Tokenizer:
    """The tokenizer of a CLIP: the one in its folder, else OpenAI's vocabulary.

    Args:
        folder: Where `tokenizer.json`, or `vocab.json` and `merges.txt`, may be.

    Raises:
        CheckpointError: The folder's tokenizer cannot be read.
        MissingExtraError: It comes without `tokenizer.json`, and transformers is missing.
    """
    # OpenAI pads with 0. Under the causal mask any id would do; without it, 0 is what the released code attends to.
    if folder and not (folder / "tokenizer.json").is_file() and (folder / "merges.txt").is_file():
        inner = _transformers_tokenizer(folder, "CLIPTokenizer")
        ends = [inner.bos_token_id], [inner.eos_token_id]
        return Tokenizer(_encode_slowly(inner), *ends, 0, len(inner), folder, inner.get_vocab)
    file = folder / "tokenizer.json" if folder and (folder / "tokenizer.json").is_file() else CLIP_VOCABULARY
    inner = _read(file)
    start, end = inner.token_to_id("<|startoftext|>"), inner.token_to_id("<|endoftext|>")
    if start is not None and end is not None:
        return Tokenizer(_encode_fast(inner), [start], [end], 0, inner.get_vocab_size(), file, inner.get_vocab)
    start, end, pad = (inner.token_to_id(token) for token in ("<s>", "</s>", "<pad>"))  # MetaCLIP 2
    if None in (start, end, pad):
        raise CheckpointError(f"{file} lacks CLIP's <|startoftext|> or <|endoftext|>: use the tokenizer of the weights")
    return Tokenizer(_encode_fast(inner), [start], [end], pad, inner.get_vocab_size(), file, inner.get_vocab)


def siglip_tokenizer(folder: Path | None, *, plain: bool = False) -> Tokenizer:
    """The tokenizer beside a SigLIP's weights, fed with lower case, as both generations were trained.

    Args:
        folder: Where `tokenizer.json` or `spiece.model` is.
        plain: Whether punctuation is left out whichever generation it is, as open_clip does.

    Raises:
        CheckpointError: There is none, since SigLIP's vocabularies are not in the package, or it cannot be read.
        MissingExtraError: It comes without `tokenizer.json`, and transformers or SentencePiece is missing.
    """
    if folder and (file := folder / "tokenizer.json").is_file():
        inner = _read(file)
        # Gemma's vocabulary (SigLIP 2) ends a text with <eos>; that of C4 (SigLIP, MedSigLIP) ends and fills with </s>.
        for end, pad, prepare in (("<eos>", "<pad>", str.lower), ("</s>", "</s>", _without_punctuation)):
            ids = inner.token_to_id(end), inner.token_to_id(pad)
            if None not in ids:
                encode = _encode_fast(inner, _canonical if plain else prepare)
                return Tokenizer(encode, [], [ids[0]], ids[1], inner.get_vocab_size(), file, inner.get_vocab)
        raise CheckpointError(f"{file} has neither <eos> and <pad> nor </s>: use the tokenizer of the weights")
    if folder and (folder / "spiece.model").is_file():
        inner = _transformers_tokenizer(folder, "SiglipTokenizer")
        ends, pad, pieces = [inner.eos_token_id], inner.pad_token_id, inner.get_vocab
        return Tokenizer(_encode_slowly(inner), [], ends, pad, len(inner), folder, pieces)
    where = folder or "this SigLIP"
    raise CheckpointError(f"{where} has no tokenizer: put the model's tokenizer.json or spiece.model there")


def bert_tokenizer(folder: Path | None) -> Tokenizer:
    """The WordPiece tokenizer beside the weights of a CLIP with a BERT.

    Raises:
        CheckpointError: There is none, since BERT's vocabularies are not in the package, or it cannot be read.
    """
    places = [folder / name for name in ("tokenizer.json", "vocab.txt")] if folder else []
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise CheckpointError(f"{folder} has no tokenizer: put the model's tokenizer.json or vocab.txt there")
    inner = _read(file) if file.suffix == ".json" else _read_vocabulary(file)
    start, end, pad = (inner.token_to_id(token) for token in ("[CLS]", "[SEP]", "[PAD]"))
    if None in (start, end, pad):
        raise CheckpointError(f"{file} lacks [CLS], [SEP] or [PAD]: use the tokenizer of the weights")
    return Tokenizer(_encode_fast(inner), [start], [end], pad, inner.get_vocab_size(), file, inner.get_vocab)


def _read_vocabulary(file: Path) -> Any:
    """BERT's tokenizer from its list of word pieces; in lower case unless tokenizer_config.json says otherwise."""
    import tokenizers

    config = file.with_name("tokenizer_config.json")
    lower = read_json(config).get("do_lower_case", True) if config.is_file() else True
    try:
        return tokenizers.BertWordPieceTokenizer(str(file), lowercase=bool(lower))
    except Exception as error:  # noqa: BLE001 -- the library raises bare Exception
        raise CheckpointError(f"{file} is not a vocabulary of word pieces: {first_line(error)}") from None


def _read(file: Path) -> Any:
    import tokenizers

    try:
        inner = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 -- the library raises bare Exception
        raise CheckpointError(f"{file} is not a tokenizer of the tokenizers library: {first_line(error)}") from None
    inner.no_padding()
    inner.no_truncation()
    return inner


def _without_punctuation(text: str) -> str:
    """Lower case, no ASCII punctuation, single spaces: what transformers' SiglipTokenizer makes of a text."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def _canonical(text: str) -> str:
    """What open_clip makes of a text for its SigLIPs: an underscore is a space there."""
    return _without_punctuation(text.replace("_", " "))


def _encode_fast(inner: Any, prepare: Callable[[str], str] = str) -> Callable[[Sequence[str]], list[list[int]]]:
    def encode(texts: Sequence[str]) -> list[list[int]]:
        given = [prepare(text) for text in texts]
        return [encoding.ids for encoding in inner.encode_batch(given, add_special_tokens=False)]

    return encode


def _transformers_tokenizer(folder: Path, kind: str) -> Any:
    try:
        import transformers

        return getattr(transformers, kind).from_pretrained(folder, local_files_only=True)
    except ImportError:
        raise MissingExtraError.of(
            f"the tokenizer in {folder} comes without tokenizer.json and needs transformers", "transformers"
        ) from None
    except Exception as error:  # noqa: BLE001 -- whatever a damaged file makes the library raise
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {first_line(error)}") from None


def _encode_slowly(inner: Any) -> Callable[[Sequence[str]], list[list[int]]]:
    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [list(ids) for ids in inner(list(texts), add_special_tokens=False)["input_ids"]] if texts else []

    return encode

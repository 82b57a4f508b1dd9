"""CLIP's vocabulary against the golden ids and against a reference written from the paper's description of BPE."""

import ast
import itertools
import json
import re
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

import madclip
from madclip.backbones.tokenizer import CLIP_VOCABULARY, clip_tokenizer, siglip_tokenizer
from madclip.errors import CheckpointError, MissingExtraError

GOLDEN = Path(__file__).parents[1] / "golden" / "released_public.npz"


@pytest.fixture(scope="module")
def tokenizer():
    return clip_tokenizer(None)


class Reference:
    """Greedy pair merging by rank, one word at a time, with plain loops; letters and digits by unicodedata."""

    def __init__(self):
        model = json.loads(CLIP_VOCABULARY.read_text("utf-8"))["model"]
        self.ids = model["vocab"]
        self.ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
        visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [b for b in range(256) if b not in visible]
        self.symbol = {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}

    def words(self, text):
        text = re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).lower()
        at = 0
        while at < len(text):
            contraction = next(
                (c for c in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d") if text.startswith(c, at)), None
            )
            kind = self.kind(text[at])
            end = at + 1
            if contraction:
                end = at + len(contraction)
            elif kind in "LO":
                while end < len(text) and self.kind(text[end]) == kind:
                    end += 1
            if kind != " ":
                yield text[at:end]
            at = end

    @staticmethod
    def kind(char):
        if char.isspace():
            return " "
        category = unicodedata.category(char)[0]
        return category if category in "LN" else "O"

    def encode(self, text):
        return [i for word in self.words(text) for i in self.merge(word)]

    def merge(self, word):
        parts = [self.symbol[b] for b in word.encode()]
        parts[-1] += "</w>"
        while len(parts) > 1:
            rank, at = min((self.ranks.get(pair, 10**9), i) for i, pair in enumerate(itertools.pairwise(parts)))
            if rank == 10**9:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return [self.ids[part] for part in parts]


def test_golden_token_ids(tokenizer):
    golden = np.load(GOLDEN)
    rows = tokenizer.encode([str(text) for text in golden["texts"]])
    for row, expected in zip(rows, golden["token_ids"], strict=True):
        full = [*tokenizer.start_ids, *row, *tokenizer.end_ids]
        assert full + [tokenizer.pad_id] * (77 - len(full)) == expected.tolist()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "a photo of a retinal OCT.",
        " disease  {}\n\t",
        "It's they've we'll I'm he'd don't you're 'sample",
        "T2-weighted MRI, 3.0T; slice 12/155 (0.94mm)",
        "Ödem der Netzhaut, café-au-lait, naïve",
        "cafe\u0301",
        "脑部磁共振 аномалия شذوذ",
        "µ ½ ² ⅷ ٣ 𝟘",
        "🩻🧠 x-ray!!! ???...",
        "snake_case __init__ <tag> &amp; a|b",
        "İstanbul STRAßE ﬁbrosis",
        "x" * 300,
    ],
)
def test_tricky_strings_equal_the_reference(tokenizer, text):
    assert tokenizer.encode([text]) == [REFERENCE.encode(text)]


REFERENCE = Reference()


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(codec="utf-8", categories=("L", "Nd", "P", "S", "Zs")), max_size=30))
def test_any_text_equals_the_reference(tokenizer, text):
    text = text.replace("<|", "")  # the two special tokens, when typed, are another matter
    text = "".join(c for c in text if unicodedata.ucd_3_2_0.category(c) != "Cn")  # newer characters: classes may differ
    assert tokenizer.encode([text]) == [REFERENCE.encode(text)]


def test_no_length_limit(tokenizer):
    assert len(tokenizer.encode(["brain " * 500])[0]) == 500


def test_transformers_gives_the_same_ids_from_vocab_and_merges(tmp_path, tokenizer):
    model = json.loads(CLIP_VOCABULARY.read_text("utf-8"))["model"]
    vocabulary = model["vocab"] | {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in model["merges"]) + "\n")
    other = clip_tokenizer(tmp_path)
    texts = ["a photo of a retinal OCT.", "It's 12 mm, Ödem", "🩻 x-ray"]
    assert other.encode(texts) == tokenizer.encode(texts)
    assert (other.start_ids, other.end_ids, other.pad_id) == (tokenizer.start_ids, tokenizer.end_ids, tokenizer.pad_id)


def test_a_folder_may_bring_its_own(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(CLIP_VOCABULARY.read_bytes())
    assert clip_tokenizer(tmp_path).source == tmp_path / "tokenizer.json"


def test_damaged_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        clip_tokenizer(tmp_path)


def test_siglip_without_tokenizer(tmp_path):
    with pytest.raises(CheckpointError, match=r"put the model's tokenizer\.json"):
        siglip_tokenizer(tmp_path)


def test_sentencepiece_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "spiece.model").write_bytes(b"x")

    def from_pretrained(*args, **options):
        raise ImportError("SiglipTokenizer requires the SentencePiece library")

    monkeypatch.setattr("transformers.SiglipTokenizer", SimpleNamespace(from_pretrained=from_pretrained))
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[transformers\]'"):
        siglip_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("make", "files"), [(clip_tokenizer, ("vocab.json", "merges.txt")), (siglip_tokenizer, ("spiece.model",))]
)
def test_a_tokenizer_of_the_hub_names_the_extra(tmp_path, monkeypatch, make, files):
    for name in files:
        (tmp_path / name).write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"without tokenizer\.json.*pip install '\.\[transformers\]'") as caught:
        make(tmp_path)
    assert "\n" not in str(caught.value)


def test_nothing_else_in_the_package_imports_transformers():
    package = Path(madclip.__file__).parent
    found = []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "transformers" for name in names):
                found.append(path.relative_to(package).as_posix())
    assert found == ["backbones/tokenizer.py"]


@pytest.mark.parametrize(
    ("end", "pad", "expected"), [("<eos>", "<pad>", ["a", "b", "."]), ("</s>", "</s>", ["a", "b"])]
)
def test_siglip_vocabularies(tmp_path, end, pad, expected):
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([pad, end, "a", "b", "."]))}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=end))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.save(str(tmp_path / "tokenizer.json"))
    found = siglip_tokenizer(tmp_path)
    assert found.encode(["A  B."]) == [[vocabulary[word] for word in expected]]
    assert (found.start_ids, found.end_ids, found.pad_id) == ([], [vocabulary[end]], vocabulary[pad])

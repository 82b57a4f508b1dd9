"""Tokens of test images that one method after another reads: encoded once for all of them."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from madclip.backbones.spec import Backbone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from madclip.backbones.spec import TextAttention

ROOM = 2 * 2**30
"""Bytes that a process keeps of one set."""


class TokenMemory:
    """The tokens of the test images of one set at a time, as far as there is room for them.

    Args:
        room: Bytes that they may take.
    """

    def __init__(self, room: int = ROOM) -> None:
        self.room = room
        self.found = 0
        """How often a batch was not encoded again."""
        self._of = ""
        self._open = False
        self._streams: dict[tuple[str, ...], list[torch.Tensor]] = {}

    def __len__(self) -> int:
        return len(self._streams)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Within it, backbones remember; what they remembered of a set of another name is forgotten."""
        if name != self._of:
            self._streams.clear()
        self._of, self._open = name, True
        try:
            yield
        finally:
            self._open = False

    def streams(
        self, key: Callable[[], tuple[str, ...]], encode: Callable[[], list[torch.Tensor]]
    ) -> list[torch.Tensor]:
        """What is remembered under a key, or else what `encode` gives."""
        if not self._open:
            return encode()
        if (known := self._streams.get(name := key())) is not None:
            self.found += 1
            return list(known)
        streams = encode()
        taken = sum(one.nbytes for kept in self._streams.values() for one in kept)
        if taken + sum(one.nbytes for one in streams) <= self.room:
            self._streams[name] = list(streams)
        return streams


class RememberedBackbone(Backbone):
    """A backbone that asks a memory before it encodes an image; in all else it is the one it was made from.

    On an accelerator, and where a method changes the stream on its way, it remembers nothing.
    """

    def __init__(self, backbone: Backbone, memory: TokenMemory) -> None:
        super().__init__()
        self.backbone, self.memory = backbone, memory
        self.spec, self.image_size = backbone.spec, backbone.image_size

    def encode_image(
        self,
        pixels: torch.Tensor,
        *,
        windows: torch.Tensor | None = None,
        after_tap: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """Residual streams at the taps, remembered or computed; see `Backbone.encode_image`."""
        if after_tap is not None or self.device.type != "cpu":
            return self.backbone.encode_image(pixels, windows=windows, after_tap=after_tap)

        def key() -> tuple[str, ...]:
            tensors = [tensor.contiguous() for tensor in (pixels, windows) if tensor is not None]
            bytes_of = (tensor.view(torch.uint8).numpy().data for tensor in tensors)
            return self.fingerprint, *(hashlib.sha256(one).hexdigest() for one in bytes_of)

        return self.memory.streams(key, lambda: self.backbone.encode_image(pixels, windows=windows))

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        """What the towers compute in."""
        return self.backbone.dtype

    @property
    def fingerprint(self) -> str:
        """That of the towers."""
        return self.backbone.fingerprint

    def embed_image(self, stream: torch.Tensor) -> torch.Tensor:
        """See `Backbone.embed_image`."""
        return self.backbone.embed_image(stream)

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """See `Backbone.encode_text`."""
        return self.backbone.encode_text(texts)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Backbone.tokenize`."""
        return self.backbone.tokenize(texts)

    @property
    def words(self) -> dict[int, str]:
        """See `Backbone.words`."""
        return self.backbone.words

    @property
    def start_ids(self) -> list[int]:
        """Ids put before a text."""
        return self.backbone.start_ids

    @property
    def end_ids(self) -> list[int]:
        """Ids put after a text."""
        return self.backbone.end_ids

    @property
    def pad_id(self) -> int:
        """Id that fills the rest of a text's positions."""
        return self.backbone.pad_id

    def embed_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        """See `Backbone.embed_tokens`."""
        return self.backbone.embed_tokens(ids)

    def encode_embeddings(
        self, embeddings: torch.Tensor, end: torch.Tensor, *, attention: TextAttention = "native"
    ) -> torch.Tensor:
        """See `Backbone.encode_embeddings`."""
        return self.backbone.encode_embeddings(embeddings, end, attention=attention)

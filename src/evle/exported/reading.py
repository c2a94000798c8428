"""Images and texts as the arrays that an exported graph reads, prepared as the trained model's task prepares them.

The pixels may differ from those of `evle.transforms.image` by one level of 255: Pillow resizes here, torch there.

B rows, T text tokens, S side of the model's images.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from evle.data.images import open_image
from evle.data.samples import ImageSource
from evle.errors import CheckpointError, SampleError, in_one_line
from evle.exported.folder import TOKENIZER
from evle.transforms.framing import seen_region, test_geometry
from evle.transforms.words import clean_caption, kept_tokens

Arrays = dict[str, np.ndarray]


class ImageReader:
    """Images as `pixel_values`, by the field `image` of export.json: side, framing, mean and std."""

    def __init__(self, facts: Mapping[str, Any]):
        self.side = int(facts["side"])
        self.framing = facts["framing"]
        self.mean, self.std = (np.asarray(facts[name], np.float32)[:, None, None] for name in ("mean", "std"))

    def read(self, source: ImageSource) -> np.ndarray:
        """One image as uint8 (3, S, S). Raises SampleError where it cannot be read."""
        image = open_image(source, size_hint=2 * self.side)
        if self.framing == "pad":
            left, top, right, bottom = seen_region(image.size, "pad")
            square = Image.new("RGB", (right - left, bottom - top), "white")
            square.paste(image, (-left, -top))
            image = square
        width, height, left, top = test_geometry(image.size, self.side, self.framing)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        image = image.crop((left, top, left + self.side, top + self.side))
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def read_or_error(self, source: ImageSource | np.ndarray) -> np.ndarray | SampleError:
        """As `read`, with the error as the result; an array is what an earlier call returned, any other is refused."""
        if isinstance(source, np.ndarray):
            form = (3, self.side, self.side)
            if source.dtype == np.uint8 and source.shape == form:
                return source
            return SampleError(
                f"an array of {source.dtype} with the shape {source.shape} is no image that was read here, of uint8 "
                f"with the shape {form}; give a PIL image, a path or encoded bytes"
            )
        try:
            return self.read(source)
        except SampleError as error:
            return error

    def collate(self, pixels: Sequence[np.ndarray]) -> Arrays:
        """Images of `read` as `pixel_values` (B, 3, S, S) float32."""
        values = np.stack(pixels).astype(np.float32) / np.float32(255)
        return {"pixel_values": (values - self.mean) / self.std}


class TextReader:
    """Texts as `input_ids` and `attention_mask`, by the field `text` of export.json and the folder's tokenizer.json.

    Raises CheckpointError for a tokenizer that cannot be read.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]):
        file = folder / TOKENIZER
        try:
            self.tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises plain Exceptions
            raise CheckpointError(f"{file}: not a readable tokenizer ({in_one_line(error)}); export again") from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.facts = facts

    def read(self, text: str) -> list[int]:
        """The token ids of one text: cleaned, encoded, cut, and with a [MASK] if the model reads its answer there."""
        facts = self.facts
        if facts["clean"]:
            text = clean_caption(text, facts["max_words"])
        encoding = self.tokenizer.encode(text)
        longest = facts["max_length"] - (facts["slot"] is not None)
        kept = kept_tokens(encoding.special_tokens_mask, longest, facts["truncation_side"])
        tokens = [encoding.ids[index] for index in kept]
        return tokens if facts["slot"] is None else [*tokens[:-1], facts["slot"], tokens[-1]]

    def collate(self, token_lists: Sequence[Sequence[int]]) -> Arrays:
        """Token lists as `input_ids` and `attention_mask` (B, T) int64, padded to the longest or to a fixed length."""
        length = self.facts["padded_to"] or max(map(len, token_lists))
        input_ids = np.full((len(token_lists), length), self.facts["pad"], np.int64)
        attention_mask = np.zeros((len(token_lists), length), np.int64)
        for row, tokens in enumerate(token_lists):
            input_ids[row, : len(tokens)], attention_mask[row, : len(tokens)] = tokens, 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

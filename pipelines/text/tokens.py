"""CLIP's vocabulary, and prompts cut into the chunks of 75 tokens that its encoders take.

The merges are OpenAI's (pipelines/text/clip/merges.txt.gz, MIT; see NOTICE). The vocabulary follows from them.
"""

import gzip
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from pipelines.text.prompt import Run

BOS, EOS = 49406, 49407
CHUNK = 75
LIMIT = 3 * CHUNK
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SEAM_POSITIONS = frozenset({73, 74, 75, 148, 149, 150})
"""Token positions (from 0) that NAI V3 lost before 2023-12-21: `legacy_v3_extend` drops them again."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """At most 75 token ids and their weights; begin, end and padding are the encoder's business."""

    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    def padded(self, pad: int) -> tuple[int, ...]:
        """The 77 ids an encoder reads."""
        return (BOS, *self.ids, EOS, *(pad for _ in range(CHUNK - len(self.ids))))

    def padded_weights(self) -> tuple[float, ...]:
        """One weight per position of `padded`: everything but the text itself weighs 1."""
        return (1.0, *self.weights, *(1.0 for _ in range(CHUNK + 1 - len(self.weights))))


EMPTY = Chunk()


def split_chunks(runs: Iterable[Run], drop_seams: bool = False) -> tuple[Chunk, ...]:
    """Cut weighted text into chunks, losing nothing but what lies beyond 225 tokens; at least one chunk.

    Weights are clamped to [0.01, 100] here, where they are about to be applied.
    """
    tokens = weighted_tokens(runs)
    if drop_seams:
        tokens = [token for position, token in enumerate(tokens) if position not in SEAM_POSITIONS]
    parts = [tokens[start : start + CHUNK] for start in range(0, min(len(tokens), LIMIT), CHUNK)]
    return tuple(Chunk(*map(tuple, zip(*part, strict=True))) for part in parts) or (EMPTY,)


def weighted_tokens(runs: Iterable[Run]) -> list[tuple[int, float]]:
    """Every token of every run with its clamped weight, however many there are."""
    return [(token, min(max(weight, 0.01), 100.0)) for text, weight in runs for token in tokenize(text)]


def tokenize(text: str) -> list[int]:
    """The ids of a text, without begin and end."""
    return clip_tokenizer().encode(text, add_special_tokens=False).ids


@cache
def clip_tokenizer() -> Tokenizer:
    """CLIP's byte-pair encoding: NFC, single spaces, lower case, as transformers' CLIPTokenizer."""
    packed = files("pipelines.text").joinpath("clip/merges.txt.gz").read_bytes()
    merges = [tuple(line.split()) for line in gzip.decompress(packed).decode().split("\n")]
    letters = _byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges)]
    ids = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = Tokenizer(
        BPE(
            ids,
            merges,  # pyright: ignore[reportArgumentType]  # pairs by construction
            unk_token="<|endoftext|>",  # noqa: S106  # not that kind of token
            end_of_word_suffix="</w>",
            fuse_unk=False,
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
    return tokenizer


def _byte_letters() -> list[str]:
    """GPT-2's 256 printable stand-ins for bytes, in the order in which the vocabulary counts them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(code) for code in plain] + [chr(256 + k) for k in range(256 - len(plain))]

"""CLIP's tokenizer, and prompts split into the chunks of 75 tokens that its text encoders take.

The merges are OpenAI's (pipelines/text/clip/merges.txt.gz, MIT; see NOTICE). The vocabulary is derived from them.
"""

import gzip
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import count

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from pipelines.text.runs import Run
from pipelines.text.words import WordFinder

BOS, EOS = 49406, 49407
CHUNK = 75
MAX_TOKENS = 3 * CHUNK
MIN_WEIGHT, MAX_WEIGHT = 0.01, 100.0
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SEAM_POSITIONS = frozenset({73, 74, 75, 148, 149, 150})
"""Token positions (from 0) that NAI V3 dropped before 2023-12-21; `legacy_v3_extend` drops them too."""


Token = tuple[int, float]
"""An id and its weight."""
InversionIds = WordFinder[tuple[int, ...]]
"""The ids that the names of textual inversions stand for."""
NO_INVERSIONS: InversionIds = WordFinder({})


@dataclass(frozen=True, slots=True)
class Chunk:
    """At most 75 token ids and their weights, without begin, end and padding tokens."""

    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    def pad_ids(self, pad: int) -> tuple[int, ...]:
        """Return the 77 ids for a text encoder, filled with `pad`."""
        return (BOS, *self.ids, EOS, *(pad for _ in range(CHUNK - len(self.ids))))

    def pad_weights(self) -> tuple[float, ...]:
        """Return the 77 weights for the ids of `pad_ids`; begin, end and padding have weight 1."""
        return (1.0, *self.weights, *(1.0 for _ in range(CHUNK + 1 - len(self.weights))))


EMPTY = Chunk()


def split_chunks(
    runs: Iterable[Run], drop_seams: bool = False, inversions: InversionIds = NO_INVERSIONS
) -> tuple[Chunk, ...]:
    """Split weighted text into chunks, at least one; weights are clamped to [0.01, 100].

    The vectors of an inversion stay in one chunk. What needs a fourth chunk is dropped.
    """
    groups = _tokenize_groups(runs, inversions)
    if drop_seams:
        groups = _drop_seams(groups)
    chunks: list[list[Token]] = [[]]
    for group in groups:
        if len(chunks[-1]) + len(group) > CHUNK:
            if len(chunks) == MAX_TOKENS // CHUNK:
                break
            chunks.append([])
        chunks[-1] += group
    return tuple(Chunk(*map(tuple, zip(*chunk, strict=True))) if chunk else EMPTY for chunk in chunks)


def tokenize_runs(runs: Iterable[Run], inversions: InversionIds = NO_INVERSIONS) -> list[Token]:
    """Return every token of every run with its weight clamped to [0.01, 100]; the number is not limited."""
    return [token for group in _tokenize_groups(runs, inversions) for token in group]


def _tokenize_groups(runs: Iterable[Run], inversions: InversionIds) -> list[list[Token]]:
    """Return the tokens that stay together: the vectors of an inversion, and every other one alone."""
    groups: list[list[Token]] = []
    for text, weight in runs:
        clamped = min(max(weight, MIN_WEIGHT), MAX_WEIGHT)
        for piece in inversions.split(text):
            if isinstance(piece, str):
                groups += [[(token, clamped)] for token in tokenize(piece)]
            else:
                groups.append([(token, clamped) for token in piece])
    return groups


def _drop_seams(groups: Iterable[list[Token]]) -> list[list[Token]]:
    position, kept = count(), list[list[Token]]()
    for group in groups:
        kept.append([token for token in group if next(position) not in SEAM_POSITIONS])
    return kept


def tokenize(text: str) -> list[int]:
    """Return the ids of a text, without begin and end tokens."""
    return clip_tokenizer().encode(text, add_special_tokens=False).ids


@cache
def clip_tokenizer() -> Tokenizer:
    """Return CLIP's byte-pair tokenizer: NFC, single spaces, lower case, as in transformers' CLIPTokenizer."""
    packed = files("pipelines.text").joinpath("clip/merges.txt.gz").read_bytes()
    merges = [tuple(line.split()) for line in gzip.decompress(packed).decode().split("\n")]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    # GPT-2's 256 printable characters for bytes, in vocabulary order
    letters = [chr(code) for code in printable] + [chr(256 + k) for k in range(256 - len(printable))]
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges)]
    ids = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    model = BPE(
        ids,
        merges,  # pyright: ignore[reportArgumentType]  # pairs by construction
        unk_token="<|endoftext|>",  # noqa: S106  # a text token, not a secret
        end_of_word_suffix="</w>",
        fuse_unk=False,
    )
    tokenizer = Tokenizer(model)
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

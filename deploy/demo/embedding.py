"""Embeddings without a model: weighted words, projected at random.

The demo must run without a download, and its neighbours must make sense all the same. So a text is
the bag of its words and word pairs, rare ones weighing more (tf-idf), and each of these has a fixed
direction of 384 random signs: the 384 bits of its BLAKE2b digest. Texts that share rare words come
close to each other; all others are nearly orthogonal, within about 1 / sqrt(384) = 0.05.

Nothing is random about it in time: the same text gives the same vector in every process, for the
same corpus. (Python's own hash() of a text does not.)
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

DIMENSION = 384
PAIR_WEIGHT = 0.5  # a pair says more than its words do, but it matches seldom and adds noise
FADE = 12.0  # words after which a word weighs half: what a text is about, it says first

Vectors: TypeAlias = NDArray[np.float32]

# Words, numbers, and the parts of identifiers: HTTPServer -> HTTP Server, read_line -> read line.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")

# What a word loses to become the same as its relatives; three letters stay. smtplib is about smtp.
_ENDING = re.compile(
    r"(?<=...)(ations?|at(e|ed|es|ing)|ions?|ings?|ers?|ors?|ies|ed|es|(?<![isu])s|y|e|lib)$"
)

# fmt: off
_STOP_WORDS = frozenset({
    "a", "about", "after", "all", "also", "an", "and", "any", "are", "as", "at", "be", "been",
    "before", "but", "by", "can", "cannot", "do", "does", "each", "etc", "false", "for", "from",
    "get", "given", "has", "have", "how", "if", "in", "instead", "into", "is", "isn", "it", "its",
    "just", "like", "made", "make", "may", "more", "must", "no", "none", "not", "of", "on", "only",
    "or", "other", "otherwise", "over", "own", "return", "same", "see", "self", "set", "should",
    "so", "some", "such", "than", "that", "the", "their", "them", "then", "there", "these", "they",
    "this", "to", "true", "up", "use", "using", "via", "was", "we", "when", "where", "which",
    "while", "will", "with", "would", "you", "your",
})
# fmt: on


class Embedder:
    """Embeds texts; how rare a word is, it takes from the corpus that it is made with."""

    def __init__(self, corpus: Iterable[str]) -> None:
        self._size = 0
        self._frequency: Counter[str] = Counter()
        for text in corpus:
            self._size += 1
            self._frequency.update(_features(text).keys())

    def embed(self, texts: Iterable[str]) -> Vectors:
        """One row a text: float32, shape (texts, 384), of length 1 (0 for a text of no words)."""
        rows = [self._sum(_features(text)) for text in texts]
        vectors = np.stack(rows) if rows else np.zeros((0, DIMENSION), np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)

    def _sum(self, features: dict[str, float]) -> Vectors:
        if not features:
            return np.zeros(DIMENSION, np.float32)
        weights = np.array([self._weight(*feature) for feature in features.items()], np.float32)
        return weights @ _directions(features)

    def _weight(self, feature: str, presence: float) -> float:
        rarity = math.log((1 + self._size) / (1 + self._frequency[feature]))
        return math.sqrt(presence) * rarity * (PAIR_WEIGHT if " " in feature else 1)


def _directions(features: Iterable[str]) -> Vectors:
    digests = (
        hashlib.blake2b(feature.encode(), digest_size=DIMENSION // 8).digest()
        for feature in features
    )
    bits = np.unpackbits(np.frombuffer(b"".join(digests), np.uint8)).reshape(-1, DIMENSION)
    return bits.astype(np.float32) * 2 - 1


def _features(text: str) -> dict[str, float]:
    """The words of a text and its pairs of neighbouring words: how often, and how far in front."""
    words = _words(text)
    features: dict[str, float] = defaultdict(float)
    for position, word in enumerate(words):
        presence = 1 / (1 + position / FADE)
        features[word] += presence
        if position:
            features[f"{words[position - 1]} {word}"] += presence
    return features


def _words(text: str) -> list[str]:
    words = (match.lower() for match in _WORD.findall(text))
    return [_stem(word) for word in words if word not in _STOP_WORDS and len(word) > 1]


@functools.cache
def _stem(word: str) -> str:
    """`parses`, `parsed`, `parser` and `parsing` are the same word; so are `run` and `running`."""
    word = _ENDING.sub("", word)
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word

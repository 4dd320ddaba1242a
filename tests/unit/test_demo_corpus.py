"""The texts of the demo and their embeddings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deploy.demo.corpus import Docstring, collect
from deploy.demo.embedding import DIMENSION, Embedder

SOURCE = '''
"""What the module is about."""

class Reader:
    """Reads from left to right."""

    def read(self):
        """Read the whole of it."""

        def inner():
            """Defined within a method."""

    @property
    def size(self):
        """Its size, as read."""

    @size.setter
    def size(self, value):
        """Its size, as written."""

    def _private(self):
        """Not for everybody."""

    def __len__(self):
        """Everybody may ask for it."""

    def short(self):
        """Too short."""

    def silent(self):
        pass

if True:
    async def fetch():
        """Fetch it in the background."""
else:
    def fetch():
        """Fetch it right here, now."""
'''


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A standard library of two modules, one that does not parse, and things to be skipped."""
    for name, text in {
        "reader.py": SOURCE,
        "package/__init__.py": '"""A package, told from its modules."""',
        "package/inner.py": '"""A module within a package."""',
        "package/broken.py": "def",
        "test/test_reader.py": SOURCE,
        "site-packages/other.py": SOURCE,
        "config-3.11-x86_64-linux-gnu/build.py": SOURCE,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_every_definition_is_found_under_its_full_name(library: Path) -> None:
    assert {text.id: text.kind for text in collect(library)} == {
        "package": "module",
        "package.inner": "module",
        "reader": "module",
        "reader.Reader": "class",
        "reader.Reader.read": "method",
        "reader.Reader.read.inner": "function",
        "reader.Reader.size": "method",
        "reader.Reader.size#2": "method",
        "reader.Reader._private": "method",
        "reader.Reader.__len__": "method",
        "reader.fetch": "function",
        "reader.fetch#2": "function",
    }


def test_a_docstring_knows_where_it_is_from(library: Path) -> None:
    found = {text.id: text for text in collect(library)}
    assert found["reader.Reader.read"] == Docstring(
        id="reader.Reader.read",
        text="Read the whole of it.",
        module="reader",
        kind="method",
        line=7,
        public=True,
    )
    assert not found["reader.Reader._private"].public
    assert found["reader.Reader.__len__"].public


@pytest.fixture(scope="module")
def docstrings() -> list[Docstring]:
    return collect()


def test_the_standard_library_has_enough_of_them(docstrings: list[Docstring]) -> None:
    assert len(docstrings) >= 5000
    assert len({text.id for text in docstrings}) == len(docstrings)
    assert {text.kind for text in docstrings} == {"module", "class", "function", "method"}
    assert "json.decoder.JSONDecoder.decode" in {text.id for text in docstrings}


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("compress a file with gzip", "gzip.GzipFile"),
        ("send an email over smtp", "smtplib.SMTP.send"),
        ("compute the median of numbers", "statistics.median"),
        ("split a shell command into words", "shlex.split"),
        ("walking directory trees", "os.walk"),
        ("decode json", "json.decoder.JSONDecoder.decode"),
    ],
)
def test_a_question_finds_what_answers_it(
    docstrings: list[Docstring], vectors: np.ndarray, embedder: Embedder, question: str, answer: str
) -> None:
    nearest = np.argsort(-(vectors @ embedder.embed([question])[0]))[:5]
    assert answer in [docstrings[row].id for row in nearest]


@pytest.fixture(scope="module")
def embedder(docstrings: list[Docstring]) -> Embedder:
    return Embedder(text.passage for text in docstrings)


@pytest.fixture(scope="module")
def vectors(docstrings: list[Docstring], embedder: Embedder) -> np.ndarray:
    return embedder.embed(text.passage for text in docstrings)


def test_vectors_are_of_length_one(vectors: np.ndarray) -> None:
    assert vectors.dtype == np.float32
    assert vectors.shape[1] == DIMENSION
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_texts_without_words_are_embedded_too() -> None:
    embedder = Embedder(["One text is enough."])
    assert not embedder.embed(["", "?!"]).any()
    assert embedder.embed([]).shape == (0, DIMENSION)


def test_another_process_gives_the_same_bits() -> None:
    program = (
        "import sys; from deploy.demo.embedding import Embedder\n"
        "texts = ['Read a line of text.', 'Write a line.', 'Parse a date.']\n"
        "sys.stdout.write(Embedder(texts).embed(texts).tobytes().hex())"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(answers) == 1
    assert answers != {""}

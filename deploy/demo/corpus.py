"""The texts of the demo: the docstrings of the Python standard library.

They are real, every Python has them (nothing is downloaded), and anybody can judge whether a search
over them finds the right ones. Files are parsed, never imported: importing the whole library would
run its side effects.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

COLLECTION = "python-docstrings"
MIN_LENGTH = 15  # characters; below that it is mostly "Inherited." and "Test."

# What is not the library itself, or is it only on some systems or in some versions.
SKIPPED = frozenset(
    {"test", "tests", "idle_test", "idlelib", "turtledemo", "tkinter", "distutils", "lib2to3"}
    | {"site-packages", "dist-packages", "__pycache__"}
)

Definition: TypeAlias = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True, kw_only=True)
class Docstring:
    """A docstring and where it is from."""

    id: str  # the qualified name, `json.decoder.JSONDecoder.decode`
    text: str
    module: str
    kind: str  # module, class, function or method
    line: int  # of the definition, from 1
    public: bool  # no part of the name is private; dunder methods are not

    @property
    def passage(self) -> str:
        """What is embedded: the name says as much as the text."""
        return f"{self.id}\n{self.text}"

    @property
    def metadata(self) -> dict[str, str | int | bool]:
        """What the record carries beside its text."""
        return {
            "module": self.module,
            "kind": self.kind,
            "line": self.line,
            "public": self.public,
        }


def collect(root: Path | None = None) -> list[Docstring]:
    """All docstrings below `root` (default: the running Python's standard library).

    Ordered by file and line. Ids are unique: of definitions that share a name (a property's getter
    and setter, the branches of an `if`), all but the first get `#2`, `#3` and so on.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    seen: dict[str, int] = {}
    found = []
    for path in _sources(root):
        module = _module_name(path.relative_to(root))
        for name, kind, node in _definitions(path, module):
            text = ast.get_docstring(node)
            if text is None or len(text) < MIN_LENGTH:
                continue
            seen[name] = seen.get(name, 0) + 1
            found.append(
                Docstring(
                    id=name if seen[name] == 1 else f"{name}#{seen[name]}",
                    text=text,
                    module=module,
                    kind=kind,
                    line=1 if isinstance(node, ast.Module) else node.lineno,
                    public=_is_public(name),
                )
            )
    return found


def _sources(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*.py")):
        folders = path.relative_to(root).parent.parts
        # config-3.11-x86_64-linux-gnu and the like are about the build of this Python.
        if not any(part in SKIPPED or "-" in part for part in folders):
            yield path


def _module_name(relative: Path) -> str:
    parts = relative.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _definitions(path: Path, module: str) -> Iterator[tuple[str, str, Definition]]:
    """The module and everything defined in it, however deep, with full name and kind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library has invalid escapes in places
        try:
            tree = ast.parse(path.read_bytes(), filename=path.name)
        except (SyntaxError, ValueError):
            return  # a template, or a fixture that is meant to be broken
    yield module, "module", tree
    yield from _inner(tree, module)


def _inner(parent: ast.AST, prefix: str) -> Iterator[tuple[str, str, Definition]]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.ClassDef):
            name = f"{prefix}.{node.name}"
            yield name, "class", node
            yield from _inner(node, name)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}.{node.name}"
            yield name, "method" if isinstance(parent, ast.ClassDef) else "function", node
            yield from _inner(node, name)
        elif isinstance(node, ast.stmt | ast.ExceptHandler):
            yield from _inner(node, prefix)  # what an `if` or a `try` defines


def _is_public(name: str) -> bool:
    parts = name.split(".")
    return not any(part.startswith("_") and not part.startswith("__") for part in parts)

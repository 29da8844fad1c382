"""The content of a split is everything that its prepared pairs follow from, as one key; nothing else is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

import lit_align
from lit_align.data.prepared.read_split import Gather
from lit_align.data.sources.base import Files, Saved, locate
from lit_align.data.sources.hub import SAVED, SAVED_SPLITS
from lit_align.data.sources.local import LocalFile
from lit_align.data.text.tokenize import Tokenize
from lit_align.errors import DataError

LIBRARIES = ("transformers", "tokenizers", "jinja2", "pyarrow", "datasets")
_WORTH_KEEPING = 16 * 2**20


def worth_keeping(gather: Gather) -> bool:
    """Whether the files of a split are so large that preparing them again takes longer than a moment.

    Args:
        gather: where its pairs come from.
    """
    return findable(gather) and sum(path.stat().st_size for path in _paths(gather)) >= _WORTH_KEEPING


def findable(gather: Gather) -> bool:
    """Whether the rows of a split are in local files, whose content can be told before they are read as rows.

    A data set of the hub is not: what its name stands for is known to ``datasets`` alone, which keeps its rows.

    Args:
        gather: where its pairs come from.
    """
    return all(isinstance(locate(source.path), Files | Saved) for source in gather.sources)


def content_key(gather: Gather, tokenize: Tokenize) -> str:
    """Changes with anything that a pair, its ids, or its place in the split follows from.

    Args:
        gather: where the pairs come from.
        tokenize: pairs to ids.
    """
    content = {
        "sources": [
            [list(_files(source.path)), source.columns, source.format, source.weight, source.repeat]
            for source in gather.sources
        ],
        "formats": {name: repr(layout) for name, layout in gather.formats.items()},
        "holdout": repr(gather.holdout),
        "held": gather.held if gather.holdout else None,
        "limit": gather.limit,
        "sample": gather.seed if any(source.weight is not None for source in gather.sources) else None,
        "tokenizer": tokenizer_content(tokenize.encoder.tokenizer),
        "encoder": _settings(tokenize.encoder, "tokenizer"),
        "tokenize": _settings(tokenize, "encoder"),
        "code": _code(),
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    spelled = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(spelled.encode()).hexdigest()[:40]


def tokenizer_content(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What the ids of a text follow from: the vocabulary, its rules and special tokens, and the chat template.

    Args:
        tokenizer: the tokenizer, as it is used; what it was last told about padding is left out.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    return {
        "rules": {name: rule for name, rule in rules.items() if name not in ("truncation", "padding")},
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "control": sorted(map(str, tokenizer.all_special_tokens)),
        "template": tokenizer.chat_template,
    }


def _settings(owner: Any, left_out: str) -> dict[str, str]:
    """The settings of a dataclass, by name; each of them says in its ``repr`` what it is."""
    return {field.name: repr(getattr(owner, field.name)) for field in fields(owner) if field.name != left_out}


def _paths(gather: Gather) -> Iterator[Path]:
    for source in gather.sources:
        yield from (file.path for file in _local_files(source.path))


def _files(source: str) -> Iterator[tuple[str, str]]:
    """Name and digest of each file of a source, in the order in which they are read."""
    place = locate(source)
    if isinstance(place, Saved):
        yield "split", str(place.split)
    for file in _local_files(source):
        try:
            with file.path.open("rb") as opened:
                yield file.name, hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise DataError(str(file.path), f"cannot be read to its end: {type(error).__name__}: {error}") from error


def _local_files(source: str) -> list[LocalFile]:
    place = locate(source)
    if isinstance(place, Files):
        return list(place.files)
    if isinstance(place, Saved):
        kept = [path for path in sorted(place.folder.rglob("*")) if path.suffix == ".arrow"]
        kept += [path for name in (SAVED, SAVED_SPLITS) for path in sorted(place.folder.rglob(name))]
        return [LocalFile(path, str(path.relative_to(place.folder))) for path in kept]
    raise TypeError(f"{source} is not in local files")


@cache
def _code() -> str:
    """A digest of the code that turns rows into pairs: ``lit_align.data`` with its sub-packages, and the records."""
    return code_digest(Path(lit_align.__file__).parent / "data")


def code_digest(folder: Path) -> str:
    """A digest of the Python sources under a folder, at any depth, and of the records and errors beside it.

    Args:
        folder: of a package.
    """
    paths = (*sorted(folder.rglob("*.py")), folder.parent / "types.py", folder.parent / "errors.py")
    parts = [f"{path.relative_to(folder.parent)}".encode() + b"\0" + path.read_bytes() for path in paths]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()

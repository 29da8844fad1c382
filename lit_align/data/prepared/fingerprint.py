"""Cache keys of prepared splits, and digests of everything that prepared pairs depend on."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedTokenizerBase

from lit_align.data.prepared.read_split import SplitReader
from lit_align.data.sources.base import Files, Saved, locate_source
from lit_align.data.sources.hub import SAVED, SAVED_SPLITS
from lit_align.data.sources.local import LocalFile
from lit_align.data.text.tokenize import Tokenize
from lit_align.errors import DataError
from lit_align.files import code_digest

LIBRARIES = ("transformers", "tokenizers", "jinja2", "pyarrow", "datasets")
_LARGE = 16 * 2**20


def is_large(reader: SplitReader) -> bool:
    """Whether the local files of a split are so large that preparing them takes noticeable time."""
    if not is_local(reader):
        return False
    paths = [file.path for source in reader.sources for file in _local_files(source.path)]
    return sum(path.stat().st_size for path in paths) >= _LARGE


def is_local(reader: SplitReader) -> bool:
    """Whether all rows of a split are in local files, so that their content can be hashed before it is parsed.

    Only ``datasets`` knows the content behind the name of a hub data set, and it has its own cache.
    """
    return all(isinstance(locate_source(source.path), Files | Saved) for source in reader.sources)


def cache_key(reader: SplitReader, tokenize: Tokenize) -> str:
    """Return a key that changes with anything that affects a pair, its ids, or its place in the split."""
    weighted = any(source.weight is not None for source in reader.sources)
    content = {
        "sources": [
            [_file_digests(source.path), source.columns, source.format, source.weight, source.repeat]
            for source in reader.sources
        ],
        "formats": {name: repr(row_format) for name, row_format in reader.formats.items()},
        "holdout": repr(reader.holdout),
        "held_out": reader.held_out if reader.holdout else None,
        "limit": reader.limit,
        "seed": reader.seed if weighted else None,
        "tokenizer": tokenizer_content(tokenize.encoder.tokenizer),
        "date": str(tokenize.encoder.date) if tokenize.encoder.reads_clock else None,
        "tokenize": {name: repr(getattr(tokenize, name)) for name in ("truncation", "options")},
        "code": code_digest(Path(__file__).parents[1]),
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:40]


def tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what token ids depend on: vocabulary, rules, special tokens, and the chat template.

    Args:
        tokenizer: the tokenizer; its last padding and truncation settings are left out.
    """
    return {
        "rules": _rules(tokenizer),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "control": sorted(map(str, tokenizer.all_special_tokens)),
        "template": tokenizer.chat_template,
    }


def _rules(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return a digest of the rules of a fast tokenizer, or for one in Python its class and digests of its files.

    The text of the rules is not parsed, which would take most of the time of a start with prepared data. Truncation
    and padding come first in it.
    """
    if tokenizer.is_fast:
        before, mark, after = tokenizer.backend_tokenizer.to_str().partition('"added_tokens"')
        if not {"version", "truncation", "padding"} == set(json.loads(before.rstrip().rstrip(",") + "}")):
            raise RuntimeError("the text of a tokenizer's rules begins otherwise in this version of tokenizers")
        return {"rules": hashlib.sha256((mark + after).encode()).hexdigest()}
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}
    return {"class": type(tokenizer).__qualname__, "files": files}


def _file_digests(source: str) -> list[tuple[str, str]]:
    """Return name and digest of each file of a source, in the order in which they are read."""
    place = locate_source(source)
    digests = [("split", str(place.split))] if isinstance(place, Saved) else []
    for file in _local_files(source):
        try:
            with file.path.open("rb") as opened:
                digests.append((file.name, hashlib.file_digest(opened, "sha256").hexdigest()))
        except OSError as error:
            raise DataError(str(file.path), f"cannot be read to its end: {type(error).__name__}: {error}") from error
    return digests


def _local_files(source: str) -> list[LocalFile]:
    place = locate_source(source)
    if isinstance(place, Files):
        return list(place.files)
    if isinstance(place, Saved):
        paths = [path for path in sorted(place.folder.rglob("*")) if path.suffix == ".arrow"]
        paths += [path for name in (SAVED, SAVED_SPLITS) for path in sorted(place.folder.rglob(name))]
        return [LocalFile(path, str(path.relative_to(place.folder))) for path in paths]
    raise TypeError(f"{source} is not in local files")

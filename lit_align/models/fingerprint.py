"""A fingerprint tells whether a model's files are those that a run began with."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lit_align import testbed
from lit_align.disk import at_home

PARTS = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "tokenizer_config.json")
_WHOLE = 64 * 2**20
_BLOCKS, _BLOCK = 256, 2**16


def fingerprint(name: str) -> str | None:
    """SHA-256 over configuration, weights and tokenizer of a model's folder; None for what is not such a folder.

    Of a file above 64 MiB it takes the size, both ends (of safetensors that is every tensor's name, dtype and shape),
    and 256 blocks between them: another training run changes every tensor, and 15 GB are not read before each start.

    Args:
        name: folder of a model, or ``testbed:policy``.

    >>> fingerprint("testbed:policy") == fingerprint("testbed:policy")
    True
    >>> fingerprint("owner/name") is None
    True
    """
    folder = testbed.resolve(name) or at_home(name)
    if not (folder / "config.json").is_file():
        return None
    whole = hashlib.sha256()
    for path in sorted({path for part in PARTS for path in folder.glob(part)}):
        whole.update(f"{path.name} {path.stat().st_size}\n".encode())
        whole.update(_content(path))
    return whole.hexdigest()


def _content(path: Path) -> bytes:
    size = path.stat().st_size
    found = hashlib.sha256()
    with path.open("rb") as file:
        if size <= _WHOLE:
            return hashlib.file_digest(file, "sha256").digest()
        for block in range(_BLOCKS):
            file.seek((size - _BLOCK) * block // (_BLOCKS - 1))
            found.update(file.read(_BLOCK))
    return found.digest()

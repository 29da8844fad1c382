"""Helpers for files: the user's folders, digests, and durable writes."""

from __future__ import annotations

import hashlib
import json
import os
from importlib.util import find_spec
from pathlib import Path

VARIABLE = "LIT_ALIGN_CACHE"


def at_home(name: str | Path) -> Path:
    """Expand a leading ``~`` or ``~user`` to that user's folder, if the user exists.

    >>> at_home("~no-such-user/x")
    PosixPath('~no-such-user/x')
    """
    return Path(os.path.expanduser(name))  # noqa: PTH111 (Path.expanduser raises for an unknown user)


def user_cache() -> Path:
    """Return the default cache folder: ``LIT_ALIGN_CACHE``, or a folder in the user's cache."""
    folder = os.environ.get(VARIABLE)
    return at_home(folder) if folder else Path.home() / ".cache" / "lit_align"


def own_folder(folder: Path, setting: str) -> None:
    """Create a folder that only its owner may use, or check that an existing one is not writable by others.

    Raises:
        PermissionError: the folder belongs to another user, or others may write to it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        problem = "others may write to it" if status.st_uid == os.getuid() else "it belongs to another user"
        raise PermissionError(f"{setting} {folder}: {problem}; expected a folder that only you may write to")


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_digest(package: Path) -> str:
    """Return a digest of the Python sources of a package at any depth, and of ``types`` and ``errors`` beside it."""
    paths = (*sorted(package.rglob("*.py")), package.parent / "types.py", package.parent / "errors.py")
    parts = [f"{path.relative_to(package.parent)}".encode() + b"\0" + path.read_bytes() for path in paths]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def to_disk(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def adapter_base(name: str | Path) -> str | None:
    """Return the base model that a folder with an adapter names; None for anything but such a folder.

    A relative path is looked up from the current folder, and then from the adapter's.

    Raises:
        ValueError: ``adapter_config.json`` cannot be read, or names no base model.
    """
    folder = at_home(name)
    file = folder / "adapter_config.json"
    if not file.is_file():
        return None
    try:
        base = json.loads(file.read_text("utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read: {error}; expected the file that PEFT writes") from error
    if not base or not isinstance(base, str):
        raise ValueError(f"{file} names no base model; expected a folder or a hub name as base_model_name_or_path")
    beside = folder / base
    return str(beside) if beside.is_dir() and not at_home(base).is_dir() else base


def gguf_source(place: str) -> tuple[str, dict[str, str]]:
    """Return what ``from_pretrained`` is called with: a name as it is, or the folder and the name of a GGUF file.

    Raises:
        ValueError: it is a GGUF file, and the package ``gguf`` is missing.

    >>> gguf_source("owner/name")
    ('owner/name', {})
    """
    if not is_gguf(place):
        return place, {}
    if find_spec("gguf") is None:
        raise ValueError(f"{place} needs the package gguf: pip install 'lit-align[gguf]'")
    return str(at_home(place).parent), {"gguf_file": Path(place).name}


def is_gguf(name: str) -> bool:
    """Return whether a model's name is that of a GGUF file."""
    return Path(name).suffix.lower() == ".gguf"


def tokenizer_source(model: str) -> str:
    """Return where a model's tokenizer is read from: the model, or the base of an adapter that has none beside it."""
    base = adapter_base(model)
    if base is None:
        return model
    own = (at_home(model) / name for name in ("tokenizer_config.json", "tokenizer.json", "tokenizer.model"))
    return model if any(file.is_file() for file in own) else base


def refuse_second_adapter(policy: str, lora: object) -> None:
    """Raise if a policy's folder holds an adapter, and a new one is to be trained on top.

    Raises:
        ValueError: there would be two.
    """
    base = adapter_base(policy)
    if base is not None and lora is not None:
        raise ValueError(
            f"model.policy {policy} holds an adapter (adapter_config.json) of the model {base}, which is trained "
            "further, and model.lora asks for a new one beside it. Leave model.lora out; or, for a new one on top, "
            "merge the old one first (peft.AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload()"
            ".save_pretrained(merged)) and name the merged folder"
        )

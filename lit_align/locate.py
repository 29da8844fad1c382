"""Where models and tokenizers are: folders, hub names, adapters, GGUF files."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

from lit_align import testbed
from lit_align.files import at_home

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
"""``owner/name``."""
WRITE_BASE = "write the base model's folder or hub name into its adapter_config.json (base_model_name_or_path)"
"""What to do about an adapter whose base model is not found."""


def locate_model(name: str) -> str:
    """Resolve a model's name to a local folder or a hub name; that of an adapter to its base model's.

    A name that exists on disk, looks like a path, or whose first part is an existing folder is local and must exist:
    a mistyped path is never looked up on a hub. ``testbed:policy`` is the tiny model that ships with the package.

    Raises:
        FileNotFoundError: the local folder, or its ``config.json``, is missing.
        ValueError: the base model of an adapter is an adapter.
    """
    base = adapter_base(name)
    if base is None:
        return _locate_whole(name)
    if adapter_base(base) is not None:
        raise ValueError(f"{name} is an adapter of {base}, which holds an adapter itself; expected a whole model")
    try:
        return _locate_whole(base)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name} is an adapter of {base}: {error}; {WRITE_BASE}") from error


def _locate_whole(name: str) -> str:
    folder = testbed.resolve(name) or at_home(name)
    if is_gguf(name) and folder.is_file():
        return str(folder)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"config.json is missing in {folder}: that folder is not a Hugging Face model")
        return str(folder)
    if not is_gguf(name) and HUB_NAME.fullmatch(name) and not Path(name.split("/")[0]).exists():
        return name
    if is_gguf(name):
        raise FileNotFoundError(f"model file not found: {name} (expected a GGUF file on this disk)")
    raise FileNotFoundError(f"model folder not found: {name} (expected a folder, or a hub name owner/model)")


def locate_tokenizer(name: str) -> tuple[str, dict[str, str]]:
    """Return where a tokenizer is read from, and the options that a GGUF file needs.

    Raises:
        FileNotFoundError: the folder, or a tokenizer in it, does not exist. A path is never looked up on a hub.
        ValueError: it is a GGUF file, and the package ``gguf`` is missing.
    """
    folder = testbed.resolve(name) or at_home(name)
    if is_gguf(name):
        if not folder.is_file():
            raise FileNotFoundError(f"tokenizer file not found: {name} (expected a GGUF file on this disk)")
    elif folder.is_dir():
        if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")):
            raise FileNotFoundError(f"tokenizer.json is missing in {folder}: no tokenizer there")
    elif not HUB_NAME.fullmatch(name) or Path(name.split("/")[0]).exists():
        raise FileNotFoundError(
            f"tokenizer folder not found: {name} (data.tokenizer, which is model.policy unless it is set; expected a "
            "folder, or a hub name owner/name)"
        )
    return gguf_source(str(folder) if folder.exists() else name)


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

"""The fit check compares tokenizer and data with the sizes of the models, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from tokenizers import Tokenizer
from transformers import PretrainedConfig

from lit_align.models.loading import locate, read_config


@dataclass(frozen=True)
class TokenSizes:
    """What the data will ask of a model.

    Args:
        tokenizer: name of the tokenizer, for messages.
        vocabulary: each token and its id.
        pad: id to pad with.
        longest: tokens of the longest sequence, prompt and response together.
    """

    tokenizer: str
    vocabulary: Mapping[str, int]
    pad: int
    longest: int


def check_fit(sizes: TokenSizes, model: str, revision: str | None = None) -> None:
    """Raise if a model cannot take the data; warn if it was made with another tokenizer.

    Args:
        sizes: of tokenizer and data.
        model: local folder, hub name, or ``testbed:policy``.
        revision: branch, tag or commit hash of a hub model.

    Raises:
        FileNotFoundError: the model is not there.
        ValueError: there are more tokens than rows of the embedding, or longer sequences than positions.
    """
    place, config = locate(model), read_config(model, revision).get_text_config()
    _check_vocabulary(sizes, model, config.vocab_size)
    _check_positions(sizes.longest, model, config)
    own = Path(place) / "tokenizer.json"
    if own.is_file():
        _compare(sizes, model, Tokenizer.from_file(str(own)).get_vocab(with_added_tokens=True))


def check_reference(reference: str, policy: str, revisions: tuple[str | None, str | None] = (None, None)) -> None:
    """Raise if a reference has another vocabulary than the policy: their probabilities are about other tokens.

    Args:
        reference: the reference's folder or hub name.
        policy: the policy's.
        revisions: of reference and policy.

    Raises:
        FileNotFoundError: one of them is not there.
        ValueError: the sizes of their vocabularies differ.
    """
    theirs, ours = (
        read_config(name, revision).get_text_config()
        for name, revision in zip((reference, policy), revisions, strict=True)
    )
    if theirs.vocab_size != ours.vocab_size:
        raise ValueError(
            f"reference {reference}: vocabulary of {theirs.vocab_size}, but the policy's ({policy}) has "
            f"{ours.vocab_size}; expected two models of the same tokens"
        )
    files = [Path(locate(name)) / "tokenizer.json" for name in (reference, policy)]
    if all(file.is_file() for file in files):
        other, own = (Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True) for file in files)
        moved = _moved(other, own)
        if moved:
            rank_zero_warn(f"reference {reference}: {moved} as the policy's ({policy}); was it made with another one?")


def _check_vocabulary(sizes: TokenSizes, model: str, rows: int) -> None:
    needed = 1 + max(max(sizes.vocabulary.values(), default=0), sizes.pad)
    if needed > rows:
        raise ValueError(
            f"the tokenizer {sizes.tokenizer} has ids up to {needed - 1} ({needed} tokens), but the embedding of "
            f"{model} has {rows} rows; take the tokenizer of the model, or a model whose embedding was enlarged"
        )


def _check_positions(longest: int, model: str, config: PretrainedConfig) -> None:
    """Learned positions end where they end; rotary ones go on, but the model has never seen them."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is None or longest <= positions or _is_scaled(config):
        return
    raise ValueError(
        f"the longest pair has {longest} tokens, but {model} was made for {positions} positions; "
        f"lower data.max_length to {positions}, or set the scaling of its rotary positions in its config.json"
    )


def _is_scaled(config: PretrainedConfig) -> bool:
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, Mapping))]
    return any(part.get("rope_type", "default") != "default" for part in kinds)


def _compare(sizes: TokenSizes, model: str, own: Mapping[str, int]) -> None:
    moved = _moved(sizes.vocabulary, own)
    if moved:
        rank_zero_warn(
            f"the tokenizer {sizes.tokenizer} is not the one of {model}: {moved}. The model reads other words than "
            "the data says; take the model's own (data.tokenizer)"
        )


def _moved(vocabulary: Mapping[str, int], own: Mapping[str, int]) -> str:
    """How many tokens do not have the same id, and the first of them; nothing if all have."""
    moved = sorted((number, token) for token, number in own.items() if vocabulary.get(token) != number)
    return f"{len(moved)} of {len(own)} tokens have other ids, such as {moved[0][1]!r}" if moved else ""

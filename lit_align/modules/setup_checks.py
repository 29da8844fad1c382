"""What is checked when a run starts: that all parts fit together, and that the policy is still its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PretrainedConfig

from lit_align.data import Split
from lit_align.models import AdapterOff, Loading, LoRA, Precomputed, Reference, SecondModel
from lit_align.models.loading import locate, read_config
from lit_align.objectives.base import Objective
from lit_align.objectives.beta_scale import BetaReading, read_betas
from lit_align.online.objective import OnlineObjective
from lit_align.types import PairLogProbs

START_TOLERANCE = 0.05
"""Nats by which a token's log-probability may differ through rounding alone, bfloat16 included."""


def reference_of(
    objective: Objective | OnlineObjective, given: Reference | None, lora: LoRA | None
) -> Reference | None:
    """The reference of a run: the one that is given, or the one that its objective and adapter ask for.

    Args:
        objective: what is optimised.
        given: what the user chose, if anything.
        lora: the adapter that is trained, if one is.

    Raises:
        ValueError: the one that is given would have no effect, or could not move.
    """
    if not objective.needs.reference:
        if given is not None:
            raise ValueError("model.reference is set, but the objective needs none; leave it out")
        return None
    if given is not None and given.moves and lora is not None:
        raise ValueError("model.reference moves with the policy's weights, but model.lora leaves these alone")
    return given or (SecondModel() if lora is None else AdapterOff())


def check_needs(objective: Objective, data: Any) -> None:
    """Raise if the data does not build, or has, what the objective asks for.

    Args:
        objective: what is optimised.
        data: the data module, set up.

    Raises:
        ValueError: something is missing, or would be ignored.
    """
    if objective.needs.prompted and not data.prompted:
        raise ValueError("the objective compares with a quality prompt: data.prompted must be true")
    if objective.needs.mismatched and not data.mismatched:
        raise ValueError("the objective compares with the responses of other rows: data.mismatched must be true")
    check_columns(objective, data.splits)


def check_models(data: Any, policy: str, loading: Loading, reference: Reference | None) -> None:
    """Compare the sizes of tokenizer and data with those of the models that will read them.

    Args:
        data: the data module, set up.
        policy: local folder or hub name.
        loading: how the policy is read.
        reference: where the frozen log-probabilities come from.

    Raises:
        FileNotFoundError: a model is not there.
        ValueError: a model is too small for the data, or speaks of other tokens.
    """
    sizes = TokenSizes(data.tokenizer_name, data.vocabulary, data.pad_token, data.longest)
    check_fit(sizes, policy, loading.revision)
    if isinstance(reference, SecondModel | Precomputed) and reference.path is not None:
        check_reference(reference.path, policy, (reference.loading.revision, loading.revision))


def check_start(reference: Reference | None, logps: PairLogProbs) -> None:
    """Before the first step a copied reference is the policy, and the first loss is known; say if it is not.

    Args:
        reference: of the run.
        logps: of its first batch.
    """
    if reference is None or not reference.copies_policy or logps.reference is None:
        return
    apart = float((logps.policy - logps.reference).detach().abs().max())
    if apart > START_TOLERANCE:
        rank_zero_warn(
            f"before the first step the policy is not its reference: log-probs differ by up to {apart:.2g}; "
            "something changed it after it was loaded, or it has dropout of its own"
        )


def response_lengths(split: Split) -> NDArray[np.int64]:
    """Scored tokens of every response of a split that is there.

    Args:
        split: the training pairs.
    """
    lengths = split.store.lengths
    return lengths[lengths > 0]


def read_scales(objective: Objective, split: Split) -> tuple[BetaReading, ...]:
    """Each β at the scale of sums; say aloud which is of the other scale.

    Args:
        objective: what is optimised.
        split: the training pairs.
    """
    readings = read_betas(objective, float(response_lengths(split).mean()))
    for reading in readings:
        if reading.warning:
            rank_zero_warn(reading.warning)
    return readings


def scale_values(readings: Sequence[BetaReading]) -> dict[str, Tensor]:
    """Each β at the scale of sums under the name that it is reported by.

    Args:
        readings: of the objective.
    """
    names = [f"beta/{reading.name}/effective" if reading.name else "beta/effective" for reading in readings]
    return {name: torch.tensor(reading.at_sum_scale) for name, reading in zip(names, readings, strict=True)}


def length_quarters(split: Split) -> tuple[float, ...]:
    """The three lengths that divide the responses of a split into quarters, in scored tokens.

    Args:
        split: the training pairs.
    """
    return tuple(np.quantile(response_lengths(split), (0.25, 0.5, 0.75)).tolist())


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


def check_columns(objective: Objective, splits: Mapping[str, Split]) -> None:
    """Raise if a split has what the objective would ignore, or lacks what it depends on.

    Args:
        objective: what is optimised.
        splits: name → prepared split.

    Raises:
        ValueError: it has unpaired rows, margins or preference probabilities that the objective does not honour, or
            has none of those that it requires.
    """
    name = type(objective).__name__
    for split, columns in splits.items():
        if not columns.store.lengths.any():
            raise ValueError(f"data.{split} has prompts alone, without responses; expected pairs, or task: online")
        if columns.unpaired and not objective.needs.unpaired:
            raise ValueError(
                f"data.{split} is unpaired (prompt, completion, label), but {name} compares a chosen with a rejected "
                "response; expected pairs, or an objective for unpaired data"
            )
        ignored = sorted(columns.honoured - objective.needs.columns)
        if ignored:
            leave_out = ", ".join(f"{column}: null" for column in ignored)
            raise ValueError(
                f"data.{split} has the columns {', '.join(ignored)}, which {name} would ignore; if that is "
                f"right, leave them out: data.columns: {{{leave_out}}}"
            )
        lacking = sorted(set(objective.needs.required_columns) - columns.honoured)
        if lacking:
            name_them = ", ".join(f"{column}: <its name>" for column in lacking)
            raise ValueError(
                f"data.{split} has no values in {', '.join(lacking)}, which {name} requires; if they are there "
                f"under another name, say so: data.columns: {{{name_them}}}"
            )

"""Checks at the start of a run: that objective, data and models fit together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PretrainedConfig

from lit_align import testbed
from lit_align.data import PreferenceData, Split
from lit_align.files import at_home
from lit_align.locate import adapter_base, locate_model
from lit_align.models import AdapterOff, Loading, LoRA, Precomputed, Reference, SavedAdapter, SecondModel
from lit_align.models.loading import read_config
from lit_align.objectives.base import Objective
from lit_align.objectives.beta_scale import BetaReading, read_betas
from lit_align.online.objective import OnlineObjective
from lit_align.types import PairLogProbs

START_TOLERANCE = 0.05
"""Nats by which a token's log-probability may differ through rounding alone, bfloat16 included."""

# ── the checks of each task ─────────────────────────────────────────────────────────────────────────────────────────


def reference_of(
    objective: Objective | OnlineObjective, reference: Reference | None, lora: LoRA | SavedAdapter | None
) -> Reference | None:
    """Return the reference of a run: the user's, or the one that objective and adapter imply.

    Args:
        objective: of the run.
        reference: what the user has chosen; None for no choice.
        lora: the adapter, new or saved; None where all weights train.

    Raises:
        ValueError: the user's reference would have no effect, or could not move.
    """
    if not objective.needs.reference:
        if reference is not None:
            raise ValueError("model.reference is set, but the objective needs none; leave it out")
        return None
    if reference is not None and reference.moves and lora is not None:
        raise ValueError("model.reference moves with the policy's weights, but model.lora leaves these alone")
    if isinstance(lora, SavedAdapter) and isinstance(reference, AdapterOff):
        base = adapter_base(lora.folder)
        raise ValueError(
            f"model.reference AdapterOff would be the base model {base}, not the policy as it was loaded. Leave "
            f"model.reference out for a frozen copy of the adapter; or take SecondModel with path {base} for the base"
        )
    return reference or (AdapterOff() if isinstance(lora, LoRA) else SecondModel())


def check_needs(objective: Objective, data: Any) -> None:
    """Raise if the data lacks what the objective needs, or has columns that it would ignore.

    Raises:
        ValueError: something is missing, or would be ignored.
    """
    if objective.needs.prompted and not data.prompted:
        raise ValueError("the objective compares with a quality prompt: data.prompted must be true")
    if objective.needs.mismatched and not data.mismatched:
        raise ValueError("the objective compares with the responses of other rows: data.mismatched must be true")
    check_columns(objective, data.splits)


def check_models(data: PreferenceData, policy: str, loading: Loading, reference: Reference | None) -> None:
    """Check that tokenizer and data fit the policy and its reference.

    Raises:
        FileNotFoundError: a model does not exist.
        ValueError: a model is too small for the data, or the two have different vocabularies.
    """
    check_fit(data, policy, loading.revision, what=longest_pair(data))
    if isinstance(reference, SecondModel | Precomputed) and reference.path is not None:
        check_reference(reference.path, policy, (reference.loading.revision, loading.revision))
        config = read_config(reference.path, reference.loading.revision).get_text_config()
        check_frequencies(data.longest, reference.path, config)


def check_start(reference: Reference | None, logps: PairLogProbs) -> None:
    """Warn if a reference that copies the policy differs from it before the first step."""
    if reference is None or not reference.copies_policy or logps.reference is None:
        return
    difference = float((logps.policy - logps.reference).detach().abs().max())
    if difference > START_TOLERANCE:
        rank_zero_warn(
            f"before the first step the policy is not its reference: log-probs differ by up to {difference:.2g}; "
            "something changed it after it was loaded, or it has dropout of its own"
        )


def check_columns(objective: Objective, splits: Mapping[str, Split]) -> None:
    """Raise if a split has columns that the objective would ignore, or lacks some that it requires.

    Raises:
        ValueError: a split has prompts alone, unpaired rows, columns that the objective does not use, or no values in
            one that it requires.
    """
    name = type(objective).__name__
    for split, prepared in splits.items():
        if not prepared.store.lengths.any():
            raise ValueError(f"data.{split} has prompts alone, without responses; expected pairs, or task: online")
        if prepared.unpaired and not objective.needs.unpaired:
            raise ValueError(
                f"data.{split} is unpaired (prompt, completion, label), but {name} compares a chosen with a rejected "
                "response; expected pairs, or an objective for unpaired data"
            )
        refuse_columns(split, prepared.honoured - objective.needs.columns, name)
        missing = sorted(set(objective.needs.required_columns) - prepared.honoured)
        if missing:
            columns = ", ".join(f"{column}: <its name>" for column in missing)
            raise ValueError(
                f"data.{split} has no values in {', '.join(missing)}, which {name} requires; if they are there "
                f"under another name, say so: data.columns: {{{columns}}}"
            )


def refuse_columns(split: str, ignored: Collection[str], reader: str) -> None:
    """Raise if columns would be ignored.

    Args:
        split: that has them.
        ignored: the columns.
        reader: who would ignore them.

    Raises:
        ValueError: there are any.
    """
    if ignored:
        columns = ", ".join(f"{column}: null" for column in sorted(ignored))
        raise ValueError(
            f"data.{split} has the columns {', '.join(sorted(ignored))}, which {reader} would ignore; if that is "
            f"right, leave them out: data.columns: {{{columns}}}"
        )


# ── sizes of models ─────────────────────────────────────────────────────────────────────────────────────────────────


def check_fit(
    data: Any, model: str, revision: str | None = None, longest: int | None = None, what: str = "the longest pair"
) -> None:
    """Raise if a model is too small for the data; warn if it was made with another tokenizer.

    Args:
        data: the data module; its ``tokenizer_name``, ``vocabulary``, ``pad_token`` and ``longest`` are read.
        model: local folder, hub name, or ``testbed:policy``.
        revision: branch, tag or commit hash of a hub model.
        longest: tokens of the longest sequence, prompt and response together; None for the data's.
        what: which sequence that is.

    Raises:
        FileNotFoundError: the model does not exist.
        ValueError: there are more tokens than rows of the embedding, or longer sequences than positions.
    """
    place, config = locate_model(model), read_config(model, revision).get_text_config()
    vocabulary: Mapping[str, int] = data.vocabulary
    tokens = 1 + max(max(vocabulary.values(), default=0), data.pad_token)
    if tokens > config.vocab_size:
        raise ValueError(
            f"the tokenizer {data.tokenizer_name} has ids up to {tokens - 1} ({tokens} tokens), but the embedding of "
            f"{model} has {config.vocab_size} rows; take the tokenizer of {adapter_base(model) or 'the model'} "
            "(data.tokenizer), or a model whose embedding was enlarged"
        )
    longest = data.longest if longest is None else longest
    _check_positions(longest, model, config, what)
    check_frequencies(longest, model, config)
    own = str(testbed.resolve(data.tokenizer_name) or at_home(data.tokenizer_name)) == place
    moved = "" if own else _moved_tokens(vocabulary, _saved_vocabulary(place))
    if moved:
        rank_zero_warn(
            f"the tokenizer {data.tokenizer_name} is not the one of {model}: {moved}. The model reads other words "
            "than the data says; take the model's own (data.tokenizer)"
        )


def longest_pair(data: PreferenceData, prompts_alone: bool = False) -> str:
    """Name the longest pair of the data, or its longest prompt, with file and line.

    Args:
        data: the data module, set up.
        prompts_alone: compare prompts.
    """
    longest, where = -1, ""
    for split in data.splits.values():
        lengths = split.store.part_lengths[:, 0] if prompts_alone else split.store.widths
        row = int(np.argmax(lengths))
        if lengths[row] > longest:
            longest, where = int(lengths[row]), split.pairs[row].where
    return f"the longest {'prompt' if prompts_alone else 'pair'}{where and f' ({where})'}"


def check_reference(
    reference: str, policy: str, revisions: tuple[str | None, str | None] = (None, None), scores: bool = False
) -> None:
    """Raise if a frozen model has another vocabulary than the policy, and so gives probabilities of other tokens.

    Args:
        reference: folder or hub name of the reference or the reward model.
        policy: the policy's.
        revisions: of reference and policy.
        scores: whether it is a reward model, which only reads tokens and may know more of them than the policy, such
            as a padding token of its own.

    Raises:
        FileNotFoundError: one of them does not exist.
        ValueError: the sizes of their vocabularies differ.
    """
    theirs, ours = (
        read_config(name, revision).get_text_config()
        for name, revision in zip((reference, policy), revisions, strict=True)
    )
    if theirs.vocab_size < ours.vocab_size or (theirs.vocab_size > ours.vocab_size and not scores):
        raise ValueError(
            f"reference {reference}: vocabulary of {theirs.vocab_size}, but the policy's ({policy}) has "
            f"{ours.vocab_size}; expected two models of the same tokens"
        )
    other, own = (_saved_vocabulary(locate_model(name)) for name in (reference, policy))
    moved = _moved_tokens(other, own) if other else ""
    if moved:
        rank_zero_warn(f"reference {reference}: {moved} as the policy's ({policy}); was it made with another one?")


def _check_positions(longest: int, model: str, config: PretrainedConfig, what: str) -> None:
    """Raise if there are no positions left, or if they are rotary ones that the model was not trained on."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    scaled = any(part.get("rope_type", "default") != "default" for part in _rotary_settings(config))
    if positions is not None and longest > positions and not scaled:
        raise ValueError(
            f"{what} has {longest} tokens, but {model} was made for {positions} positions; "
            f"lower data.max_length to {positions}, or set the scaling of its rotary positions in its config.json"
        )


def check_frequencies(longest: int, model: str, config: PretrainedConfig) -> None:
    """Raise if a model's rotary frequencies would depend on the longest sequence of a batch.

    ``longrope`` and ``dynamic`` scaling take other frequencies for all rows of a batch as soon as its longest one
    passes a boundary, so what a sequence gets would depend on its neighbours; below the boundary all is as usual.

    Raises:
        ValueError: the longest sequence passes the boundary.
    """
    for part in _rotary_settings(config):
        kind = str(part.get("rope_type", "default"))
        if kind not in ("longrope", "dynamic"):
            continue
        own = part.get("original_max_position_embeddings") if kind == "longrope" else None
        boundary = own or config.max_position_embeddings
        if longest > boundary:
            raise ValueError(
                f"the longest sequence has {longest} tokens, and the rotary frequencies of {model} ({kind}) are "
                f"others for a whole batch once one of its rows has more than {boundary}: log-probabilities would "
                f"depend on what stands beside a row. Lower data.max_length to {boundary}"
            )


def _rotary_settings(config: PretrainedConfig) -> list[Mapping[str, Any]]:
    """Return the settings of rotary positions, and those of each kind of layer where they differ."""
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    return [rope, *(part for part in rope.values() if isinstance(part, Mapping))]


def _saved_vocabulary(place: str) -> dict[str, int]:
    """Read the vocabulary of the tokenizer in a model's folder; empty if there is none."""
    path = Path(place) / "tokenizer.json"
    return Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True) if path.is_file() else {}


def _moved_tokens(vocabulary: Mapping[str, int], own: Mapping[str, int]) -> str:
    """Describe how many of a model's own tokens have other ids in a vocabulary; empty if none has."""
    moved = sorted((number, token) for token, number in own.items() if vocabulary.get(token) != number)
    return f"{len(moved)} of {len(own)} tokens have other ids, such as {moved[0][1]!r}" if moved else ""


# ── lengths of responses ────────────────────────────────────────────────────────────────────────────────────────────


def response_lengths(split: Split) -> NDArray[np.int64]:
    """Return the number of scored tokens of every response of a split, absent ones left out."""
    return split.store.lengths[split.store.lengths > 0]


def length_quarters(split: Split) -> tuple[float, ...]:
    """Return the quartiles of the lengths of a split's responses, in scored tokens."""
    return tuple(np.quantile(response_lengths(split), (0.25, 0.5, 0.75)).tolist())


def read_scales(objective: Objective, split: Split) -> tuple[BetaReading, ...]:
    """Convert each β to the scale of sums, and warn of one that seems to be meant for the other scale."""
    readings = read_betas(objective, float(response_lengths(split).mean()))
    for reading in readings:
        if reading.warning:
            rank_zero_warn(reading.warning)
    return readings


def scale_values(readings: Sequence[BetaReading]) -> dict[str, Tensor]:
    """Return each β at the scale of sums by the name of its metric."""
    return {
        f"beta/{reading.name}/effective" if reading.name else "beta/effective": torch.tensor(reading.at_sum_scale)
        for reading in readings
    }

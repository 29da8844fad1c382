"""What is checked when a run starts: that all parts fit together, and that the policy is still its reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor

from lit_align.data import Split
from lit_align.models import AdapterOff, Loading, LoRA, Precomputed, Reference, SecondModel
from lit_align.modules.columns import check_columns
from lit_align.modules.fit_check import TokenSizes, check_fit, check_reference
from lit_align.objectives.beta_scale import BetaReading, read_betas
from lit_align.objectives.objective import Objective
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
    if not objective.needs_reference:
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
    if objective.needs_prompted and not data.prompted:
        raise ValueError("the objective compares with a quality prompt: data.prompted must be true")
    if objective.needs_mismatched and not data.mismatched:
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

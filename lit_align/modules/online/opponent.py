"""The opponent of an on-policy run: what the policy's responses are compared with, instead of with each other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lit_align.models import Reference
from lit_align.models.generation import CachedGenerator, GeneratedResponse, GenerationRequest, Generator
from lit_align.models.mixture import MixtureGenerator
from lit_align.models.sampling import Sampling
from lit_align.models.sharding import unsharded
from lit_align.types import PairBatch


@dataclass(frozen=True)
class Opponent:
    """``π^(1-s) π_ref^s``, normalised at each token: the policy at s = 0, the reference at s = 1.

    Papers: Nash-MD, Munos et al. 2023, arXiv:2312.00886, mixes; XPO, Xie et al. 2024, arXiv:2405.21046, takes π_ref.

    Args:
        share: s, of the reference.
        reference: π_ref; None where nothing needs it.

    Raises:
        ValueError: the share is out of its range, or the run has no reference to mix in.
    """

    share: float
    reference: Reference | None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(
                f"model.opponent is {self.share}; expected the reference's share in it: 0 (the policy itself) to 1"
            )
        if self.share and self.reference is None:
            raise ValueError(
                f"model.opponent is {self.share}, but the objective has no reference to take responses from; "
                "take 0, for the policy itself, or an objective with a reference"
            )

    def generate(
        self,
        policy: Any,
        generator: Generator,
        requests: Sequence[GenerationRequest],
        stop_tokens: Collection[int],
        pad_token: int,
        sampling: Sampling,
    ) -> list[GeneratedResponse]:
        """Generate one response for each request.

        Args:
            policy: of the run.
            generator: of the run; a mixture has its own, with as many responses at once.
            requests: the prompts, each with a seed.
            stop_tokens: ids that end a response.
            pad_token: id to pad with.
            sampling: of the run.
        """
        how = (requests, stop_tokens, pad_token, sampling)
        if self.reference is None or not self.share:
            return generator(policy, *how)
        if self.share == 1:
            with self.reference.ready() as model:
                return generator(model, *how)
        size = generator.batch_size if isinstance(generator, CachedGenerator) else CachedGenerator.batch_size
        with self.reference.active() as active:
            reference = active
        with unsharded(policy), unsharded(reference):
            return MixtureGenerator(size, reference=self.reference, share=self.share)(policy, *how)


@dataclass(frozen=True)
class OpponentResponses:
    """What the opponent answered: as many responses to each prompt as the policy's, each compared with one of these.

    Args:
        batch: prompts and responses as ids, with a side axis of 1.
        score: of each response; of a score that compares, how sure it is that the response wins.
        wins: of a score that compares, how sure it is that the policy's response wins; None of others.
    """

    batch: PairBatch
    score: Tensor
    wins: list[float] | None

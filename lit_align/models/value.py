"""A value model says, before each token of a response, which return is still to be expected."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lit_align.models.loading import Loading
from lit_align.models.reward import load_score_model
from lit_align.models.score_model import ScoreModel


@dataclass(frozen=True)
class Value:
    """The value model of actor-critic training: a body of its own, with a head that starts at 0.

    Args:
        path: local folder or hub name of a language model or a reward model; None takes the policy's.
        loading: how to read it.
        learning_rate: of its weights; None for the optimizer's own.
    """

    path: str | None = None
    loading: Loading = field(default_factory=Loading)
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"Value: learning_rate is {self.learning_rate}; expected a number above 0")

    def load(self, policy: str, loading: Loading) -> ScoreModel:
        """The model, in training mode.

        Args:
            policy: name of the policy, which it starts from unless it has a path of its own.
            loading: how the policy is read; where it starts from the policy, of the same revision.
        """
        revision = self.loading.revision or (loading.revision if self.path is None else None)
        return load_score_model(self.path or policy, replace(self.loading, revision=revision), head="zero").train()

"""Settings of an on-policy run, and what is checked of them before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import final

from lightning.pytorch import Trainer

from lit_align.data import PreferenceData
from lit_align.models import ForwardPass, Loading
from lit_align.models.generation import Sampling
from lit_align.models.loading import read_config
from lit_align.models.score_model import Value
from lit_align.models.scorer import RewardModel, Scorer
from lit_align.modules.setup_checks import check_fit, check_frequencies, check_reference, longest_pair, refuse_columns
from lit_align.modules.step_totals import run_data
from lit_align.objectives.base import MARGIN, PROBABILITY, Objective
from lit_align.online.objective import OnlineNeeds, OnlineObjective
from lit_align.online.pairing import BestAgainstWorst, PairLabels, ResponsePairing


@final
@dataclass(frozen=True)
class OnlineSettings:
    """The numbers of an on-policy run; see ``LitOnline``.

    Raises:
        ValueError: a number is out of its range, or the objective needs more responses to a prompt.
    """

    objective: OnlineObjective | Objective
    sampling: Sampling
    responses: int
    epochs: int
    minibatches: int
    micro_batch: int
    eval_responses: int

    def __post_init__(self) -> None:
        for field in fields(self)[2:]:
            if getattr(self, field.name) < 1:
                raise ValueError(f"model.{field.name} is {getattr(self, field.name)}; expected 1 or more")
        for name in ("responses", "eval_responses"):
            if getattr(self, name) < self.needs.responses:
                raise ValueError(
                    f"model.{name} is {getattr(self, name)}; the objective compares responses to one prompt and needs "
                    f"{self.needs.responses}"
                )
        if self.sampling.temperature == 0:
            raise ValueError("model.sampling.temperature is 0: a policy that never varies learns nothing from itself")

    @property
    def needs(self) -> OnlineNeeds:
        """What the objective needs of a rollout."""
        needs = self.objective.needs
        return needs if isinstance(needs, OnlineNeeds) else OnlineNeeds(reference=needs.reference, responses=2)

    @property
    def steps(self) -> int:
        """Optimizer steps per rollout."""
        return self.epochs * self.minibatches

    @property
    def cautions(self) -> tuple[str, ...]:
        """One sentence for each setting that moves the optimum in a way that a user may not expect."""
        if isinstance(self.objective, Objective):
            return ()
        cautions = list(self.objective.cautions)
        for name, value in (("top_p", self.sampling.top_p), ("temperature", self.sampling.temperature)):
            if value != 1 and self.objective.matches_preferences:
                cautions.append(
                    f"model.sampling.{name} is {value:g}: the responses are not the policy's own, and preference "
                    "matching is about the policy's own distribution; take 1"
                )
        if self.objective.needs.own_samples and self.steps > 1:
            cautions.append(
                f"the surrogate is right only for the first of the {self.steps} optimizer steps on a rollout; take "
                "Clipped, or set model.epochs and model.minibatches to 1"
            )
        return tuple(cautions)


def check_arguments(
    settings: OnlineSettings, value: Value, gradient_clip: float | None, forward_pass: ForwardPass
) -> None:
    """Raise if an argument of ``LitOnline`` is out of its range, or has no effect on an on-policy run.

    Args:
        settings: of the run.
        value: ``model.value``.
        gradient_clip: ``model.gradient_clip``.
        forward_pass: ``model.forward_pass``.

    Raises:
        ValueError: names the argument.
    """
    if gradient_clip is not None and not gradient_clip > 0:
        raise ValueError(f"model.gradient_clip is {gradient_clip}; expected a number above 0, or null")
    if not settings.needs.values and value != Value():
        raise ValueError(f"model.value is {value}, but the objective needs no value model: leave it out, or take GAE")
    if forward_pass.tokens_at_once is not None:
        raise ValueError(
            f"model.forward_pass.tokens_at_once is {forward_pass.tokens_at_once}; an on-policy run reads "
            "model.micro_batch responses at once: set that, and leave this out"
        )
    if forward_pass.compile:
        raise ValueError(
            "model.forward_pass.compile is true; layers are compiled for runs that only read, and an on-policy run "
            "generates with its policy, token by token: leave it out"
        )


def check_pairing(objective: OnlineObjective | Objective, pairing: ResponsePairing, labels: PairLabels) -> None:
    """Raise if pairs of a rollout lack a column that the objective requires, or get one that it would ignore.

    Args:
        objective: of the run.
        pairing: ``model.pairing``.
        labels: ``model.labels``.

    Raises:
        ValueError: names the key.
    """
    name = type(objective).__name__
    if not isinstance(objective, Objective):
        if (pairing, labels) != (BestAgainstWorst(), PairLabels()):
            raise ValueError(f"model.pairing and model.labels have no effect on {name}, which takes no pairs")
        return
    needs = objective.needs
    for column, key in labels.columns.items():
        if column not in needs.columns:
            raise ValueError(f"model.labels.{key} gives pairs a {column}, which {name} would ignore: leave it out")
    for column in sorted(needs.required_columns - set(labels.columns)):
        key = {MARGIN: "margin_scale", PROBABILITY: "probability_scale"}[column]
        raise ValueError(f"{name} requires the {column} of pairs; set model.labels.{key}, for instance to 1")


def check_run(settings: OnlineSettings, trainer: Trainer, policy: str, loading: Loading, score: Scorer) -> None:
    """Raise if data and models do not fit together.

    Args:
        settings: of the run.
        trainer: of the run.
        policy: name of the policy.
        loading: of the policy.
        score: of the run.

    Raises:
        FileNotFoundError: a model does not exist.
        ValueError: the data is no ``PreferenceData``, has columns that would be ignored, or does not fit a model.
    """
    data = run_data(trainer)
    if not isinstance(data, PreferenceData):
        raise ValueError("on-policy training needs the run's data to be a PreferenceData: it asks it for prompts")
    for name, split in data.splits.items():
        weight = {"weight"} if bool((split.values.weight != 1).any()) else set()
        refuse_columns(name, split.honoured | weight, "an on-policy run, which takes prompts alone,")
    prompts = max((int(split.store.part_lengths[:, (0, 3)].max()) for split in data.splits.values()), default=0)
    sampled = prompts + settings.sampling.max_new_tokens
    longest, what = data.longest, longest_pair(data)
    if sampled > longest:
        tokens = f" of {prompts} tokens with model.sampling.max_new_tokens {settings.sampling.max_new_tokens}"
        longest, what = sampled, longest_pair(data, prompts_alone=True) + tokens
    check_fit(data, policy, loading.revision, longest, what)
    _check_score(settings, score)
    if isinstance(score, RewardModel):
        check_reference(score.path, policy, (score.loading.revision, loading.revision), scores=True)
        check_frequencies(longest, score.path, read_config(score.path, score.loading.revision).get_text_config())


def _check_score(settings: OnlineSettings, score: Scorer) -> None:
    """Raise if a score that compares has nothing to compare."""
    if not score.compares:
        return
    if settings.needs.greedy:
        raise ValueError("model.score only compares, and GreedyBaseline needs the score of a single response")
    for key in ("responses", "eval_responses"):
        if getattr(settings, key) < 2:
            raise ValueError(f"model.{key} is {getattr(settings, key)}; model.score compares responses: expected 2")

"""Direct alignment on a policy's own responses: pairs, labels and steps, compared with computations by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.nn import functional as F

from lit_align.data import PreferenceData
from lit_align.evaluation.judge_score import JudgeScore
from lit_align.extensions import trust
from lit_align.models import load_causal_lm, response_log_probs
from lit_align.models.loading import Loading
from lit_align.models.sampling import Sampling
from lit_align.models.scorer import FunctionScore, KnownScore, Texts
from lit_align.modules import Constant, LitOnline
from lit_align.modules.online.pairs import PairLearner, PairMaker
from lit_align.modules.online.rollout import RolloutBatch
from lit_align.objectives import SFT, Logistic, Objective, aot, dpo, ipo, kto, sr_dpo
from lit_align.objectives.presets.contrast import odpo
from lit_align.online import EveryPair, LeaveOneOut, PairLabels, RandomPairs
from lit_align.online.presets import kl_rlhf
from lit_align.testbed.truth import TestbedScore
from lit_align.types import PairBatch, PreferencePair
from tests.faults.test_online import SCORING
from tests.modules.online.test_module import POLICY, adam, distance, fit, lit_start
from tests.modules.test_one_loss import Watched
from tests.modules.test_preference import sgd, trainer
from tests.runner import BASE, SHORT, forked, in_processes, lit_align, metrics, ok, weights
from tests.runner import distance as apart

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|across ranks is zero|was called before)")


def lit(objective: Objective, **settings: Any) -> LitOnline:
    given: dict[str, Any] = {
        **{"score": KnownScore(TestbedScore()), "sampling": Sampling(max_new_tokens=12), "optimizer": sgd},
        **{"schedule": Constant(), "responses": 3, "gradient_clip": None},
    }
    return LitOnline(POLICY, objective, **{**given, **settings})


def longer(prompts: Sequence[str], responses: Sequence[str], baseline: Sequence[str]) -> list[float]:
    """A judge that is three quarters sure that the longer response is better."""
    return [0.5 + 0.25 * ((len(a) > len(b)) - (len(a) < len(b))) for a, b in zip(responses, baseline, strict=True)]


def constant(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [1.5] * len(responses)


def test_a_step_is_the_gradient_of_dpo_on_the_best_and_the_worst(rows: Path, tmp_path: Path) -> None:
    """SGD with rate 1; at the start the margin is 0, so the gradient of a pair is -β/2 (∇ log π_w - ∇ log π_l)."""
    objective = Watched(contrast=Logistic(0.5))
    module = lit(objective, micro_batch=4)
    (responses,) = fit(rows, tmp_path, module, log_every_n_steps=1)
    assert all(0 < frames <= 6 for _, frames in objective.calls)
    model = load_causal_lm(POLICY, Loading())
    log_probs = response_log_probs(model, responses.batch)[:, 0].sum(-1).view(-1, 3)
    score = responses.rollout.score.view(-1, 3)
    best, worst = score.argmax(1, keepdim=True), score.argmin(1, keepdim=True)
    decided = (score.max(1).values > score.min(1).values).float()
    assert decided.sum() >= 2
    margin = (log_probs.gather(1, best) - log_probs.gather(1, worst))[:, 0]
    loss = -F.logsigmoid(0.5 * (margin - margin.detach()))
    ((loss * decided).sum() / decided.sum()).backward()
    for (name, before), after in zip(model.named_parameters(), module.policy.parameters(), strict=True):
        assert before.grad is not None
        assert torch.allclose(before.detach() - before.grad, after.detach(), atol=5e-6), name
    reported = module.trainer.callback_metrics
    assert float(reported["train/loss"]) == pytest.approx(0.693147, abs=1e-5)
    assert float(reported["train/paired"]) == pytest.approx(float(decided.mean()))


def test_the_metrics_of_pairs_are_on_the_device_of_the_module() -> None:
    learner = lit(dpo()).to("meta").learner
    assert isinstance(learner, PairLearner)
    for metric in (learner.train_metrics, learner.eval_metrics, learner.eval_margins):
        assert {getattr(metric, name).device.type for name in metric.metric_state} == {"meta"}


def test_a_rollout_of_ties_teaches_nothing(rows: Path, tmp_path: Path) -> None:
    """The gradient is zero and not 0/0, and the step is counted."""
    module = lit(dpo(), score=FunctionScore(constant), optimizer=adam)
    with pytest.warns(UserWarning, match="no two responses that were compared had different scores"):
        fit(rows, tmp_path, module, log_every_n_steps=1)
    assert module.global_step == 1
    assert float(module.trainer.callback_metrics["train/grad_norm"]) == 0.0
    assert float(module.trainer.callback_metrics["train/paired"]) == 0.0
    assert distance(module, lit_start()) == 0.0


def test_an_evaluation_has_margins_by_length(rows: Path, tmp_path: Path) -> None:
    module = lit(dpo())
    data = PreferenceData(train=str(rows), validation=str(rows), tokenizer=POLICY, batch_size=4)
    data.setup("fit")
    module.configure_model()
    module.trainer = trainer(tmp_path)
    module.trainer.datamodule = data  # type: ignore[attr-defined]
    module.validation_step(next(iter(data.val_dataloader())), 0)
    paired = 4 * float(module.eval_metrics.compute()["paired"])
    module.evaluation_values()
    assert sum(bucket["pairs"] for bucket in module.margins["buckets"].values()) == paired > 0


# ── pairs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def sampled(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreferenceData, PairBatch, RolloutBatch]:
    """A batch of prompts under the quality prompt, and three responses to each; no model is loaded but the policy."""
    data = PreferenceData(train=str(rows), tokenizer=POLICY, batch_size=4, prompted=True)
    data.setup("fit")
    batch: PairBatch = next(iter(data.train_dataloader()))
    module = lit(sr_dpo())
    module.configure_model()
    module.trainer = trainer(tmp_path_factory.mktemp("sampled"))
    module.trainer.datamodule = data  # type: ignore[attr-defined]
    module.reference = None
    return data, batch, module.sample_rollout(batch, "train", 3, 0)


def made(
    sampled: tuple[PreferenceData, PairBatch, RolloutBatch], objective: Objective, tmp_path: Path, **how: Any
) -> list[PairBatch]:
    data, batch, responses = sampled
    settings = {"pairing": EveryPair(), "labels": PairLabels(), **how}
    make = PairMaker(data=data, needs=objective.needs, micro_batch=64, trainer=trainer(tmp_path), **settings)
    return make(responses, batch, "train", 0).batches(range(len(batch.index)))


def test_both_sides_stand_behind_the_prompt_and_under_the_quality_prompt(sampled: Any, tmp_path: Path) -> None:
    data, _, responses = sampled
    (pairs,) = made(sampled, sr_dpo(), tmp_path)
    assert pairs.prompted is not None
    scores = dict(zip(map(str, responses.texts.responses), responses.rollout.score.tolist(), strict=True))
    for row in range(len(pairs.index)):
        ids = [pairs.input_ids[row, side][pairs.mask[row, side]].tolist() for side in (0, 1)]
        prompted = pairs.prompted
        same = [prompted.input_ids[row, side][prompted.mask[row, side]].tolist() for side in (0, 1)]
        assert same == ids
        stored = data.splits["train"].store[int(pairs.index[row])]
        assert pairs.input_ids[row, 0, : len(stored.prompt)].tolist() == list(stored.prompt)
        assert prompted.input_ids[row, 0, : len(stored.prompted)].tolist() == list(stored.prompted)
        texts = [data.decode_response(stored.prompt, [token for token in side if token != 2]) for side in ids]
        assert scores[texts[0]] > scores[texts[1]]


def test_labels_are_made_of_scores(sampled: Any, tmp_path: Path) -> None:
    labels = PairLabels(margin_scale=0.5, probability_scale=2.0)
    (pairs,) = made(sampled, dpo(), tmp_path, labels=labels)
    assert pairs.margin is not None
    assert pairs.preference_probability is not None
    torch.testing.assert_close(pairs.preference_probability, torch.sigmoid(4 * pairs.margin))
    assert pairs.margin.min() > 0
    largest = 2 * float(pairs.margin.max())
    assert len(made(sampled, dpo(), tmp_path, labels=PairLabels(minimum_gap=largest - 1e-6))[0].index) < len(
        pairs.index
    )
    assert made(sampled, dpo(), tmp_path, labels=PairLabels(minimum_gap=largest + 1)) == []


def test_mismatched_responses_are_those_to_the_next_prompt(sampled: Any, tmp_path: Path) -> None:
    _, batch, responses = sampled
    (pairs,) = made(sampled, kto(), tmp_path)
    assert pairs.mismatched is not None
    own = [responses.batch.input_ids[row, 0][responses.batch.mask[row, 0]].tolist() for row in range(12)]
    for row in range(len(pairs.index)):
        place = batch.index.tolist().index(int(pairs.index[row]))
        following = (place + 1) % 4
        other = pairs.mismatched.input_ids[row, 0][pairs.mismatched.mask[row, 0]].tolist()
        assert other in own[3 * following : 3 * following + 3]
    few = RolloutBatch(
        responses.batch.rows(slice(0, 3)),
        responses.rollout.rows(slice(0, 3)),
        Texts(responses.texts.prompts[:3], responses.texts.responses[:3]),
    )
    with pytest.raises(ValueError, match=r"a batch has one; expected data\.batch_size 2"):
        made((sampled[0], batch.rows(slice(0, 1)), few), kto(), tmp_path)


def test_a_likelihood_sees_the_best_response_alone(sampled: Any, tmp_path: Path) -> None:
    (pairs,) = made(sampled, SFT(), tmp_path)
    assert pairs.input_ids.shape[1] == 1


def test_a_judge_that_compares_rates_by_wins() -> None:
    """Equal responses are not shown to it."""
    trust([__name__])
    score = JudgeScore(f"compares:{__name__}.longer")
    assert score.compares
    wins = score.wins(Texts(["p"] * 3, ["a", "bb", "a"], [PreferencePair("p", None, None)] * 3), count=3)
    assert wins == [[[0.5, 0.25, 0.5], [0.75, 0.5, 0.75], [0.5, 0.25, 0.5]]]
    labels = PairLabels(probability_scale=1.0)
    assert labels.pairs([(1, 0)], [0.375, 0.75, 0.375], wins[0])[0].preference_probability == pytest.approx(0.75)


def test_random_pairs_follow_from_the_seed() -> None:
    drawn = [RandomPairs(2)([0.0, 1.0, 2.0, 3.0], seed) for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len({tuple(pairs) for pairs in drawn}) > 1


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        (
            dpo(),
            {"responses": 1},
            r"model\.responses is 1; the objective compares .* needs 2",
        ),
        (odpo(), {}, r"requires the margin of pairs; set model\.labels\.margin_scale"),
        (
            SFT(),
            {"labels": PairLabels(margin_scale=1.0)},
            r"model\.labels\.margin_scale gives pairs a margin, which SFT",
        ),
        (
            kl_rlhf(),
            {"labels": PairLabels(minimum_gap=1.0)},
            r"pairing and model\.labels have no effect on RLHF",
        ),
    ],
)
def test_what_cannot_work_is_refused(objective: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lit(objective, **settings)


# ── partitions ──────────────────────────────────────────────────────────────────────────────────────────────────────

OBJECTIVES: dict[str, Callable[[], Objective]] = {"sr_dpo": sr_dpo, "ipo": ipo, "kto": kto, "aot": aot, "sft": SFT}
OPPONENTS: dict[str, tuple[Callable[[], Any], float]] = {
    "xpo": (dpo, 1.0),
    "nash_md": (lambda: kl_rlhf(advantage=LeaveOneOut()), 0.5),
}
"""Objectives whose responses are compared with an opponent's, and the share of the reference in it."""


def trained(name: str, rows: Path, processes: int, batch_size: int, micro_batch: int) -> dict[str, torch.Tensor]:
    """Train for two rollouts of four prompts, with two steps on each."""
    settings: dict[str, Any] = {"minibatches": 2, "micro_batch": micro_batch, "gradient_clip": 0.05}
    if name in OPPONENTS:
        objective, share = OPPONENTS[name]
        module = lit(objective(), opponent=share, **settings)
    else:
        module = lit(OBJECTIVES[name](), pairing=EveryPair(), **settings)
    data = PreferenceData(
        train=str(rows), tokenizer=POLICY, batch_size=batch_size, prompted=module.data_needs.prompted
    )
    strategy: Any = "auto" if processes == 1 else DDPStrategy(timeout=timedelta(seconds=240))
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    run = Trainer(
        **{"max_epochs": 1, "limit_train_batches": 2, "accelerator": "cpu", "devices": processes},
        **{"strategy": strategy, "use_distributed_sampler": False, "default_root_dir": rows.parent, **quiet},
    )
    run.fit(module, datamodule=data)
    return {key: weight.detach().clone() for key, weight in module.policy.named_parameters()}


@pytest.mark.long
@pytest.mark.partition("online pairs: weights for 1 and 2 processes, and any micro-batch")
@pytest.mark.parametrize("name", [*OBJECTIVES, *OPPONENTS])
def test_partitions_change_nothing(rows: Path, tmp_path: Path, name: str) -> None:
    whole = trained(name, rows, 1, 4, 64)
    assert apart(whole, trained(name, rows, 1, 4, 3)) < 2e-6
    assert apart(whole, dict(load_causal_lm(POLICY, Loading()).named_parameters())) > 1e-4

    def work(rank: int) -> None:
        weights = trained(name, rows, 2, 2, 4)
        if rank == 0:
            torch.save(weights, tmp_path / "weights.pt")

    for ended in forked(in_processes(2, work)):
        ok(ended)
    assert apart(whole, torch.load(tmp_path / "weights.pt", weights_only=True)) < 2e-6


@pytest.mark.long
@pytest.mark.resume("online pairs, in the middle of an epoch, with objective state")
@pytest.mark.parametrize(
    "how", [("--model.pairing", "RandomPairs"), ("--model.opponent", 0.5)], ids=["pairs", "mixture"]
)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(rows: Path, tmp_path: Path, how: tuple[Any, ...]) -> None:
    """BCO carries a shift from step to step; the third rollout fails once, behind four steps on two rollouts."""
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "scoring.py").write_text(SCORING)
    words = (
        *("fit", "--task", "online", *BASE, *SHORT, "--model.objective", "bco", "--model.objective.beta", 0.1),
        *("--model.score", "FunctionScore", "--model.score.function", "scoring.score", "--extend", parts),
        *("--model.sampling.max_new_tokens", 8, "--data.train", rows, "--data.batch_size", 4, "--model.responses", 3),
        *("--model.minibatches", 2, *how, "--trainer.max_steps", 8),
        *("--checkpoints.every_n_steps", 2),
    )
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert "the scores do not come any more" in lit_align(*words, "--run", run, FAILS_AT="3").out
    ok(lit_align(*words, "--run", run, "--ckpt_path", "last"))
    ok(lit_align(*words, "--run", whole))
    assert apart(weights(run), weights(whole)) == 0.0
    assert metrics(run) == metrics(whole)
    assert any(name.startswith("train/running/") for line in metrics(whole) for name in line)

"""On-policy training compared with computations by hand, for any split of a step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule

from lit_align import testbed
from lit_align.data import PreferenceData
from lit_align.models import ForwardPass, LoRA, MovingReference, ScoreReader, load_causal_lm, response_log_probs
from lit_align.models.export import token_log_probs
from lit_align.models.loading import Loading
from lit_align.models.sampling import Sampling
from lit_align.models.score_model import Value
from lit_align.models.scorer import KnownScore, ScoreError
from lit_align.modules import Constant, LitOnline
from lit_align.modules.online.rollout import RolloutBatch, RolloutSampler
from lit_align.modules.online.update import GradientAccumulator
from lit_align.modules.step_totals import NonFiniteError
from lit_align.online import GAE, RLHF, Clipped, GreedyBaseline, LeaveOneOut, OnlineObjective, Reinforce, ResponseSum
from lit_align.online.presets import conditional_pm_rlhf, kl_rlhf, pm_rlhf
from lit_align.testbed.truth import TestbedScore
from tests.models.lm_head.test_projection import Largest
from tests.models.test_adapters import save_adapter
from tests.modules.test_preference import sgd, trainer

POLICY = "testbed:policy"
pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|across ranks is zero|was called before)")
RLOO = kl_rlhf(0.1, LeaveOneOut(), Reinforce(), ResponseSum())


def lit(objective: OnlineObjective = RLOO, **settings: Any) -> LitOnline:
    given: dict[str, Any] = {
        **{"score": KnownScore(TestbedScore()), "sampling": Sampling(max_new_tokens=16), "optimizer": sgd},
        **{"schedule": Constant(), "responses": 2, "gradient_clip": None},
    }
    return LitOnline(objective=objective, **{"policy": POLICY, **given, **settings})


def prompts(rows: Path, batch_size: int = 4) -> PreferenceData:
    return PreferenceData(train=str(rows), tokenizer=POLICY, batch_size=batch_size)


class Recorder(Callback):
    """A callback that records the rollouts of a run."""

    def __init__(self) -> None:
        self.rollouts: list[RolloutBatch] = []

    def on_fit_start(self, trainer: Any, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LitOnline)
        inner = pl_module.sample_rollout

        def sample_rollout(*arguments: Any) -> RolloutBatch:
            self.rollouts.append(inner(*arguments))
            return self.rollouts[-1]

        pl_module.sample_rollout = sample_rollout  # type: ignore[method-assign]


def fit(rows: Path, folder: Path, module: LitOnline, batch_size: int = 4, **settings: Any) -> list[RolloutBatch]:
    recorder = Recorder()
    limits: dict[str, Any] = {"max_epochs": 1, "limit_train_batches": 1, **settings}
    trainer(folder, recorder, **limits).fit(module, prompts(rows, batch_size))
    return recorder.rollouts


def distance(one: LitOnline, other: LitOnline) -> float:
    pairs = zip(one.policy.parameters(), other.policy.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def test_no_gradients_are_kept_while_responses_are_sampled(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rollouts: with the key-value cache, the next largest thing in memory."""
    module = lit()
    has_gradients: list[bool] = []
    inner = RolloutSampler._generate

    def generate(self: RolloutSampler, *arguments: Any) -> Any:
        has_gradients.append(any(weight.grad is not None for weight in self.policy.parameters()))
        return inner(self, *arguments)

    monkeypatch.setattr(RolloutSampler, "_generate", generate)
    fit(rows, tmp_path, module, limit_train_batches=3)
    assert has_gradients == [False] * 3


def test_a_step_is_the_policy_gradient_of_the_samples(rows: Path, tmp_path: Path) -> None:
    """SGD with rate 1 on -mean_i (R_i - R_other) log π(y_i); at the start the penalty is 0, so R is the score."""
    module = lit()
    (responses,) = fit(rows, tmp_path, module)
    model = load_causal_lm(POLICY, Loading())
    log_probs = response_log_probs(model, responses.batch)[:, 0].sum(-1)
    score = responses.rollout.score.view(-1, 2)
    advantage = (score - score.flip(-1)).flatten()
    assert advantage.abs().max() > 0.1
    (-(advantage * log_probs).mean()).backward()
    for (name, before), after in zip(model.named_parameters(), module.policy.parameters(), strict=True):
        assert before.grad is not None
        assert torch.allclose(before.detach() - before.grad, after.detach(), atol=5e-6), name


def test_scores_and_ids_belong_together(rows: Path, tmp_path: Path) -> None:
    """The log-probabilities belong to the scored responses, end token included."""
    module = lit(sampling=Sampling(max_new_tokens=40))
    (responses,) = fit(rows, tmp_path, module)
    assert responses.rollout.score.tolist() == pytest.approx(
        TestbedScore()(responses.texts.prompts, responses.texts.responses)
    )
    model = load_causal_lm(POLICY, Loading())
    with torch.no_grad():
        assert torch.allclose(response_log_probs(model, responses.batch)[:, 0], responses.rollout.policy, atol=1e-5)
    lengths = responses.rollout.mask.sum(-1)
    last = responses.batch.input_ids[:, 0].gather(1, (responses.batch.attention_mask[:, 0].sum(-1) - 1)[:, None])[:, 0]
    assert bool(responses.ended.any())
    assert bool((last[responses.ended] == 2).all())
    assert bool((lengths[~responses.ended] == 40).all())
    assert "<|eos|>" not in "".join(responses.texts.responses)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "responses"),
    [(RLOO, 2), (kl_rlhf(advantage=GAE(), surrogate=Clipped()), 1), (kl_rlhf(advantage=GreedyBaseline()), 1)],
    ids=["RLOO", "PPO", "ReMax"],
)
def test_micro_batches_change_nothing(rows: Path, tmp_path: Path, objective: OnlineObjective, responses: int) -> None:
    one, two = (lit(objective, responses=responses, micro_batch=size) for size in (64, 3))
    for module in (one, two):
        fit(rows, tmp_path, module)
    assert distance(one, two) < 5e-6
    assert distance(one, lit_start()) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        (RLOO, {}),
        (RLOO, {"lora": LoRA(rank=2), "epochs": 2, "minibatches": 2}),
        (kl_rlhf(advantage=GAE(), surrogate=Clipped()), {"responses": 1, "reference": MovingReference(every=1)}),
    ],
    ids=["RLOO", "an adapter", "PPO and a moving reference"],
)
def test_rows_without_padding_change_nothing(
    rows: Path, tmp_path: Path, objective: OnlineObjective, settings: dict[str, Any]
) -> None:
    """The steps are small: what rounding does to one rollout stays rounding in the next."""
    settings = {"gradient_clip": 0.02, **settings}
    one, two = (lit(objective, forward_pass=how, **settings) for how in (ForwardPass(), ForwardPass(layout="padded")))
    rollouts = []
    for module in (one, two):
        torch.manual_seed(0)  # of the adapter
        rollouts.append(fit(rows, tmp_path, module, limit_train_batches=2))
    assert [module.readers.layout(module.policy) for module in (one, two)] == ["shared", "padded"]
    for mine, other in zip(*rollouts, strict=True):
        assert mine.batch.input_ids.equal(other.batch.input_ids)
        assert torch.allclose(mine.rollout.policy, other.rollout.policy, atol=2e-5)
    assert distance(one, two) < 5e-6
    assert float(one._gradient_norm) > 0.01


def test_the_reference_and_dataset_pairs_are_read_like_the_policy(rows: Path, tmp_path: Path) -> None:
    module = lit(forward_pass=ForwardPass(tile_mb=1.0))
    data = PreferenceData(train=str(rows), validation=str(rows), tokenizer=POLICY, batch_size=4)
    limits: dict[str, Any] = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1}
    trainer(tmp_path, **limits).fit(module, data)
    assert module.reference is not None
    with module.reference.active() as model:
        assert module.readers.layout(model) == module.readers.layout(module.policy) == "shared"
    assert set(module.eval_dataset_matching.compute()) == {"d1", "d2"}


@pytest.mark.parametrize(
    ("how", "said"),
    [(ForwardPass(tokens_at_once=512), r"is 512; .* model\.micro_batch"), (ForwardPass(compile=True), "is True")],
    ids=["tokens_at_once", "compile"],
)
def test_what_an_on_policy_run_does_otherwise_is_refused(how: ForwardPass, said: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.forward_pass\.\w+ (?i:{said})"):
        lit(forward_pass=how)


def test_a_value_model_that_nothing_needs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.value is Value\(.*needs no value model"):
        lit(value=Value(path="does/not/exist"))
    lit(kl_rlhf(), value=Value(path="does/not/exist"))


def test_columns_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    row = {"prompt": "2 + 2?", "chosen": " 4", "rejected": " 5", "margin": 1.0, "weight": 2.0}
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row | {"prompt": f"{place} + 2?"}) + "\n" for place in range(4)), "utf-8")
    with pytest.raises(ValueError, match=r"data\.train has the columns margin, weight, .*columns: \{margin: null"):
        fit(path, tmp_path, lit())


def lit_start() -> LitOnline:
    module = lit()
    module.configure_model()
    return module


def test_an_update_forms_its_logits_once(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of logits for each sampled token, in the forward pass; none are formed again in the backward pass."""
    formed: list[int] = []
    inner = GradientAccumulator.__call__

    def accumulate(self: GradientAccumulator, prompts: Sequence[int], most: int, backward: Any) -> None:
        policy: Any = self.module.policy
        with Largest(policy.config.vocab_size) as found:
            inner(self, prompts, most, backward)
        formed.append(found.projected)

    monkeypatch.setattr(GradientAccumulator, "__call__", accumulate)
    (responses,) = fit(rows, tmp_path, lit(micro_batch=3))
    assert formed == [int(responses.rollout.mask.sum())]


def test_epochs_and_minibatches_are_optimizer_steps(rows: Path, tmp_path: Path) -> None:
    module = lit(kl_rlhf(advantage=LeaveOneOut()), epochs=2, minibatches=3, optimizer=adam)
    fit(rows, tmp_path, module, limit_train_batches=2)
    assert module.planned_steps == module.global_step == 12


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-4)


def test_the_first_step_sees_the_policy_that_sampled(rows: Path, tmp_path: Path) -> None:
    """One step per rollout: every ratio is 1, nothing is clipped, and the KL to the start is 0 at first."""
    module = lit(kl_rlhf(advantage=LeaveOneOut()), optimizer=adam)
    fit(rows, tmp_path, module, log_every_n_steps=1)
    found = module.trainer.callback_metrics
    assert abs(float(found["train/update/kl"])) < 1e-6
    assert float(found["train/update/clipped"]) == 0
    assert abs(float(found["train/kl"])) < 1e-5


def test_later_steps_see_another(rows: Path, tmp_path: Path) -> None:
    module = lit(kl_rlhf(advantage=LeaveOneOut()), optimizer=adam, epochs=4)
    fit(rows, tmp_path, module, log_every_n_steps=1)
    assert float(module.trainer.callback_metrics["train/update/kl"]) > 1e-6


@pytest.mark.slow
def test_the_value_model_learns_the_returns(rows: Path, tmp_path: Path) -> None:
    """Values start at 0; after eight steps they are closer to the returns, within the clip of 0.2."""
    module = lit(kl_rlhf(), responses=4, epochs=8, optimizer=adam, value=Value(learning_rate=1e-3))
    (responses,) = fit(rows, tmp_path, module)
    returns, mask = module.objective.experience(responses.rollout).returns, responses.rollout.mask
    assert returns is not None
    assert module.value_model is not None
    assert responses.rollout.values is not None
    assert not responses.rollout.values.any()
    with torch.no_grad():
        after = ScoreReader(module.value_model)(responses.batch)[:, 0]
    before = float((returns[mask] ** 2).mean())
    assert 0.2 * before < float(((after - returns)[mask] ** 2).mean()) < 0.95 * before


@pytest.mark.long
def test_an_adapter_alone_is_trained(rows: Path, tmp_path: Path) -> None:
    module = lit(lora=LoRA(rank=2))
    fit(rows, tmp_path, module, log_every_n_steps=1)
    assert all("lora_" in name for name, p in module.policy.named_parameters() if p.requires_grad)
    assert abs(float(module.trainer.callback_metrics["train/kl"])) < 1e-5


def test_a_folder_with_an_adapter_is_trained_further(rows: Path, tmp_path: Path) -> None:
    """The reference is the adapter as loaded; the value model has it in its weights; a checkpoint continues both."""
    folder = save_adapter(tmp_path / "adapter", testbed.path("policy"), task_type="CAUSAL_LM")
    loaded = load_causal_lm(str(folder), Loading())
    module = lit(kl_rlhf(), policy=str(folder), optimizer=adam, value=Value(learning_rate=1e-2))
    (responses,) = fit(rows, tmp_path, module, log_every_n_steps=1)
    with torch.no_grad():
        expected = response_log_probs(loaded, responses.batch)[:, 0]
    torch.testing.assert_close(responses.rollout.policy, expected, rtol=1e-4, atol=1e-4)
    assert responses.rollout.reference is not None
    torch.testing.assert_close(responses.rollout.reference, expected, rtol=1e-4, atol=1e-4)
    assert abs(float(module.trainer.callback_metrics["train/kl"])) < 1e-5
    assert all("lora_" in name for name, weight in module.policy.named_parameters() if weight.requires_grad)

    checkpoint: dict[str, Any] = {"state_dict": module.state_dict(), "global_step": 1}
    module.on_save_checkpoint(checkpoint)
    again = lit(kl_rlhf(), policy=str(folder), value=Value())
    again.configure_model()
    assert distance(again, module) > 1e-5
    assert again.value_model is not None
    assert not any("lora_" in name for name, _ in again.value_model.named_parameters())
    assert not again.value_model.state_dict()["model.score.weight"].any()
    again.on_load_checkpoint(checkpoint)
    again.load_state_dict(checkpoint["state_dict"], strict=False)
    assert distance(again, module) == 0
    assert again.value_model.state_dict()["model.score.weight"].any()
    trained = token_log_probs(again.policy, [[5, 6, 7, 8]])
    for form in ("adapter", "merged"):
        again.save_model(again.policy, tmp_path / form, again.policy.state_dict(), 0, form)  # type: ignore[arg-type]
        exported = token_log_probs(load_causal_lm(str(tmp_path / form), Loading()), [[5, 6, 7, 8]])
        torch.testing.assert_close(exported, trained, atol=1e-4, rtol=0)


def test_a_moving_reference_moves(rows: Path, tmp_path: Path) -> None:
    """Taken over whole behind every second of three steps, it is the policy as it was one step before the end."""
    module = lit(reference=MovingReference(every=2, mixing=1.0))
    before: list[list[Any]] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            before.append([weight.detach().clone() for weight in pl_module.policy.parameters()])

    trainer(tmp_path, Watch(), max_epochs=1).fit(module, prompts(rows))
    assert module.global_step == len(before) == 3
    assert module.reference is not None
    with module.reference.active() as reference:
        for ours, theirs in zip(reference.parameters(), before[1], strict=True):
            assert torch.equal(ours, theirs)
    assert any(not torch.equal(one, other) for one, other in zip(before[1], before[2], strict=True))


# ── what is refused, and what is said ───────────────────────────────────────────────────────────────────────────────


class Bad(TestbedScore):
    """One score is NaN."""

    def __call__(self, prompts: Any, responses: Any) -> list[float]:
        return [float("nan") if row == 3 else 1.0 for row in range(len(prompts))]


@pytest.mark.fault("H01")
def test_a_score_that_is_no_number_stops_the_run_before_any_step(rows: Path, tmp_path: Path) -> None:
    module = lit(score=KnownScore(Bad()))
    with pytest.raises(ScoreError, match="nan for the response .* to the prompt"):
        fit(rows, tmp_path, module)
    assert distance(module, lit_start()) == 0


def test_a_gradient_that_is_not_finite_stops_it_too(rows: Path, tmp_path: Path) -> None:
    class Broken(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            with torch.no_grad():
                pl_module.value_model.model.score.weight.fill_(float("nan"))

    module = lit(kl_rlhf(), responses=1)
    with pytest.raises(NonFiniteError, match="rows"):
        trainer(tmp_path, Broken(), max_epochs=1).fit(module, prompts(rows))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"responses": 1}, "model.responses is 1; .* needs 2"),
        ({"epochs": 0}, "model.epochs is 0"),
        ({"micro_batch": 0}, "model.micro_batch is 0"),
        ({"sampling": Sampling(temperature=0.0)}, "temperature is 0"),
        ({"gradient_clip": 0.0}, "model.gradient_clip is 0"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lit(**settings)


def cautions(module: LitOnline) -> tuple[str, ...]:
    return module.learner.cautions(module.settings.sampling, module.settings.steps)


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        (conditional_pm_rlhf(advantage=LeaveOneOut()), {"sampling": Sampling(top_p=0.9)}, "top_p is 0.9"),
        (conditional_pm_rlhf(advantage=LeaveOneOut()), {"sampling": Sampling(temperature=0.7)}, "temperature is 0.7"),
        (conditional_pm_rlhf(advantage=LeaveOneOut(), score_limit=5.0), {}, "clamps scores"),
        (pm_rlhf(advantage=LeaveOneOut()), {}, "impossible"),
        (RLOO, {"epochs": 2}, "first of the 2 optimizer steps"),
    ],
)
def test_what_theory_warns_of_is_said(objective: RLHF, settings: dict[str, Any], message: str) -> None:
    assert any(message in caution for caution in cautions(lit(objective, **settings)))


def test_standard_rlhf_has_nothing_to_warn_of() -> None:
    assert cautions(lit(RLOO, sampling=Sampling(top_p=0.9))) == ()


def test_prompts_that_leave_no_room_for_a_response_are_refused(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the longest prompt \(.*:\d+\) of \d+ tokens with .* 512 positions"):
        fit(rows, tmp_path, lit(sampling=Sampling(max_new_tokens=500)))

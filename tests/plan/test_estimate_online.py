"""Estimates of on-policy runs against numbers by hand: responses that are written and scored, and updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lit_align.models import ForwardPass, Loading, LoRA
from lit_align.models.generation import CachedGenerator, GenerationRequest
from lit_align.models.sampling import Sampling
from lit_align.models.score_model import Value
from lit_align.models.scorer import KnownScore, RewardModel, Scorer
from lit_align.modules import LitOnline
from lit_align.online import OnlineObjective, Reinforce, ResponseSum
from lit_align.online.advantage import GreedyBaseline, LeaveOneOut
from lit_align.online.presets import kl_rlhf, pm_rlhf
from lit_align.plan import Parallelism, estimate, rollout_batch, uniform_batch
from lit_align.plan.dry_run import DryRun
from lit_align.plan.estimate import longest_responses, write_responses
from lit_align.testbed.truth import TestbedScore
from tests.plan.models import model

CPU = Parallelism(device="cpu")
RANDOM = Loading(weights="random")
RLOO = kl_rlhf(0.1, LeaveOneOut(), Reinforce(), ResponseSum())
LAYER = 4 * 384 * 384 + 3 * 384 * 1024
LAYERS = 2
POLICY = 2 * 32000 * 384 + LAYERS * (LAYER + 2 * 384) + 384
SCORER = POLICY - 32000 * 384 + 384
"""Weights of a policy, and of a score model: a row in place of the output embedding."""
PROMPTS, EACH, PROMPT, NEW = 8, 2, 20, 12
ROLLOUT = rollout_batch(uniform_batch(PROMPTS, PROMPT, 1), EACH, NEW)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("model") / "model", num_hidden_layers=LAYERS, tie_word_embeddings=False)


def online(folder: Path, objective: OnlineObjective = RLOO, **how: Any) -> LitOnline:
    given: dict[str, Any] = {
        **{"score": KnownScore(TestbedScore()), "responses": EACH, "micro_batch": 4, "sampling": Sampling(NEW)},
        **{"loading": RANDOM, "generator": CachedGenerator(batch_size=8)},
        **({"value": Value(loading=RANDOM)} if objective.needs.values else {}),
    }
    return LitOnline(str(folder), objective, **{**given, **how})


def rewarding(folder: Path) -> Scorer:
    return RewardModel(str(folder), RANDOM, batch_size=8)


@pytest.mark.long
def test_every_model_is_counted(folder: Path) -> None:
    """Policy and value model with gradients and two moments each; reference and reward model alone."""
    found = estimate(online(folder, kl_rlhf(), score=rewarding(folder)), ROLLOUT, CPU)
    assert list(found.phases) == ["writing", "scoring", "forward", "backward", "step"]
    for phase, memory in found.phases.items():
        assert memory.parameters == 4 * (POLICY + SCORER), phase
        assert memory.optimizer == 8 * (POLICY + SCORER), phase
        assert memory.frozen == 4 * (POLICY + SCORER), phase
    assert found.phases["step"].gradients == 4 * (POLICY + SCORER)
    assert found.trained == POLICY + SCORER


@pytest.mark.parametrize(
    ("objective", "how", "frozen"),
    [(RLOO, {}, POLICY), pytest.param(RLOO, {"lora": LoRA(rank=2)}, 0, marks=pytest.mark.long), (pm_rlhf(), {}, 0)],
    ids=["a reference", "an adapter", "no reference"],
)
def test_only_needed_models_take_memory(
    folder: Path, objective: OnlineObjective, how: dict[str, Any], frozen: int
) -> None:
    assert estimate(online(folder, objective, **how), ROLLOUT, CPU).memory.frozen == 4 * frozen


@pytest.mark.long
def test_keys_and_values_are_those_of_the_longest_responses_written_at_once(folder: Path) -> None:
    """In each layer two numbers of 384 for each of 8 responses and all tokens but the last, which is not read."""
    found = estimate(online(folder), ROLLOUT, CPU).phases
    assert found["writing"].cache == LAYERS * 2 * 384 * 8 * (PROMPT + NEW - 1) * 4
    assert {memory.cache for phase, memory in found.items() if phase != "writing"} == {0}
    more = estimate(online(folder, generator=CachedGenerator(batch_size=16)), ROLLOUT, CPU).phases
    assert more["writing"].cache == 2 * found["writing"].cache


@pytest.mark.long
def test_there_are_no_gradients_while_responses_are_written(folder: Path) -> None:
    found = estimate(online(folder, micro_batch=16), ROLLOUT, CPU).phases
    assert found["writing"].gradients == found["scoring"].gradients == found["forward"].gradients == 0
    assert estimate(online(folder, micro_batch=4), ROLLOUT, CPU).phases["forward"].gradients == 4 * POLICY


@pytest.mark.slow
def test_operations_of_a_rollout_by_hand(folder: Path) -> None:
    """Writing, a pass of policy and reference, and three passes per epoch, divided by the number of steps.

    A prompt is read once for its responses. Of it only the last token goes through the head, and then each token of
    the response but the last, which nothing follows. A step forms its logits once, and two products of their size for
    the gradients. Attention adds a little.
    """
    rows, width = PROMPTS * EACH, PROMPT + NEW
    layers, head = 2 * LAYERS * LAYER * (PROMPTS * PROMPT + rows * (NEW - 1)), 2 * rows * 32000 * 384 * NEW
    for epochs, minibatches in ((1, 1), (2, 1), (1, 4), (3, 2)):
        by_hand = 3 * (1 + epochs) * (layers + head) / (epochs * minibatches)
        found = estimate(online(folder, epochs=epochs, minibatches=minibatches), ROLLOUT, CPU)
        assert found.operations == pytest.approx(by_hand, rel=0.03)
        assert found.tokens == rows * width // minibatches
    assert estimate(online(folder, micro_batch=64), ROLLOUT, CPU).operations == pytest.approx(
        6 * (layers + head), rel=0.03
    )


@pytest.mark.long
def test_logits_are_never_whole(folder: Path, tmp_path: Path) -> None:
    """Twice the vocabulary: no tile is larger, where whole logits of 16 responses would take 65 MB more.

    The head's gradient is formed in the forward pass, and larger by what the head is.
    """
    more = 16 * (PROMPT + NEW) * 32_000 * 4
    larger = model(tmp_path / "model", num_hidden_layers=LAYERS, tie_word_embeddings=False, vocab_size=64_000)
    how = {"forward_pass": ForwardPass(tile_mb=4.0), "micro_batch": 16}
    found, other = (estimate(online(place, **how), ROLLOUT, CPU).phases for place in (folder, larger))
    head = 32_000 * 384 * 4
    for phase, gradient in (("scoring", 0), ("forward", head)):
        assert abs(other[phase].working - found[phase].working - gradient) < more / 16


@pytest.mark.long
def test_a_greedy_baseline_writes_another_response(folder: Path) -> None:
    greedy = kl_rlhf(0.1, GreedyBaseline(), Reinforce(), ResponseSum())
    rows = PROMPTS * EACH
    writing = 2 * rows * (LAYERS * LAYER * (PROMPT + NEW - 1) + 32000 * 384 * NEW)
    more = (
        estimate(online(folder, greedy), ROLLOUT, CPU).operations - estimate(online(folder), ROLLOUT, CPU).operations
    )
    assert more == pytest.approx(writing / EACH, rel=0.1)


@pytest.mark.slow
def test_an_opponent_writes_and_is_scored_as_well(folder: Path) -> None:
    """The reference as much as the policy; a mixture of both twice that, with twice the cache."""
    alone, reference, mixture = (
        estimate(online(folder, score=rewarding(folder), opponent=share), ROLLOUT, CPU) for share in (None, 1.0, 0.5)
    )
    writing = 2 * (LAYERS * LAYER * PROMPTS * (PROMPT + EACH * NEW) + 32000 * 384 * PROMPTS * EACH * NEW)
    scoring = 2 * LAYERS * LAYER * PROMPTS * EACH * (PROMPT + NEW)
    assert reference.operations - alone.operations == pytest.approx(writing + scoring, rel=0.15)
    assert mixture.operations - reference.operations == pytest.approx(writing, rel=0.15)
    caches = [each.phases["writing"].cache for each in (alone, reference, mixture)]
    assert caches[0] == caches[1] == caches[2] / 2 > 0


@pytest.mark.long
def test_minibatches_and_micro_batches_set_what_a_pass_takes(folder: Path) -> None:
    """Sixteen responses in four minibatches are four at a time, although the micro-batch allows more."""
    whole = estimate(online(folder, micro_batch=16), ROLLOUT, CPU).phases["forward"]
    dealt = estimate(online(folder, micro_batch=16, minibatches=4), ROLLOUT, CPU).phases["forward"]
    assert dealt.activations == pytest.approx(whole.activations / 4, rel=0.01)
    small = estimate(online(folder, micro_batch=4), ROLLOUT, CPU).phases["forward"]
    assert small.activations == dealt.activations
    assert (dealt.gradients, small.gradients) == (0, 4 * POLICY)


def test_sharded_models_are_gathered_while_responses_are_written(folder: Path) -> None:
    found = estimate(online(folder), ROLLOUT, Parallelism(processes=4, sharded=True, device="cpu")).phases
    assert found["writing"].communication == 4 * POLICY
    assert found["writing"].parameters == 4 * POLICY // 4
    layer = LAYER + 2 * 384
    assert found["forward"].communication == 4 * POLICY + 4 * layer  # its two layers, and one's gradients


@pytest.mark.slow
def test_the_operations_of_writing_are_those_of_generate() -> None:
    """Compare with the testbed's policy, which writes without a stop token."""
    module = LitOnline(
        "testbed:policy", RLOO, KnownScore(TestbedScore()), responses=2, loading=Loading(attention="eager")
    )
    object.__setattr__(module.settings, "sampling", Sampling(NEW))
    module.configure_model()
    policy: Any = module.policy.eval()
    batch = rollout_batch(uniform_batch(3, PROMPT, 1), 2, NEW)
    with FlopCounterMode(display=False) as counter:
        asked = [GenerationRequest([number // 2, *range(5, 4 + PROMPT)], number) for number in range(6)]
        module.generator(policy, asked, [10**6], 0, module.settings.sampling)
    *_, operations = write_responses(module, batch, DryRun(module, [], [], Parallelism()))
    assert operations == pytest.approx(counter.get_total_flops(), rel=0.001)


def test_the_longest_responses_are_measured() -> None:
    short, long = (rollout_batch(uniform_batch(2, prompt, 1), 1, 3) for prompt in (4, 9))
    mixed = torch.zeros(4, 1, 12, dtype=torch.bool)
    mixed[:2, :, :7], mixed[2:, :, :12] = short.attention_mask, long.attention_mask
    batch = rollout_batch(uniform_batch(4, 9, 1), 1, 3)
    object.__setattr__(batch, "attention_mask", mixed)
    assert longest_responses(batch, 3).index.tolist() == [2, 3, 0]

"""Numbers that are known in advance: first losses, means, sums over a step, and invariances."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lit_align import testbed
from lit_align.models import response_log_probs
from lit_align.models.logps.plain import packed_mask
from lit_align.objectives import averaged_dpo, dpo, ipo, sr_dpo
from lit_align.objectives.base import Objective
from lit_align.types import PairBatch, PairLogProbs
from tests.conftest import pair_batch, tiny_llama
from tests.runner import BASE, SHORT, Ended, distance, lit_align, losses, metrics, ok, weights

LN2 = math.log(2)
SGD = ("--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.05")
PAIR = {"prompt": "Where is Rome? ", "chosen": "In Italy.", "rejected": "In Spain."}


def fit(run: Path, rows: Path, *more: object, objective: str = "dpo") -> Ended:
    return lit_align("fit", "--run", run, *BASE, *SHORT, "--model.objective", objective, "--data.train", rows, *more)


def written(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def scored(policy: torch.nn.Module, reference: torch.nn.Module, batch: PairBatch) -> PairLogProbs:
    with torch.no_grad():
        frozen = response_log_probs(reference, batch)
    return PairLogProbs(response_log_probs(policy, batch), frozen, packed_mask(batch))


@pytest.mark.fault("A00")
@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        pytest.param("dpo", LN2, marks=pytest.mark.long),
        pytest.param("averaged_dpo", LN2, marks=pytest.mark.long),
        ("ipo", (1 / (2 * 0.1)) ** 2),
        ("sr_dpo", LN2),
    ],
)
def test_a00_the_first_loss_of_four_good_rows_is_the_known_one(
    tmp_path: Path, objective: str, expected: float
) -> None:
    """With a policy that is its reference every margin is 0; one that is not is warned of in ``test_preference``."""
    lines = testbed.path("train.jsonl").read_text("utf-8").splitlines()[:4]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    beta = ("--model.objective.beta", "0.1")
    ok(fit(tmp_path / "run", path, "--trainer.max_steps", 2, *beta, objective=objective))
    first, second = losses(tmp_path / "run")
    assert first == pytest.approx(expected, rel=1e-5)
    assert second != pytest.approx(expected, rel=1e-5)


@pytest.mark.fault("A03b")
def test_a03b_means_divide_by_the_tokens_that_are_scored() -> None:
    """Prompts of one token and of none but BOS, in float64 against a loop over each response alone."""
    policy, reference = tiny_llama(0).double(), tiny_llama(1).double()
    prompts, sides = [[1], [1, 5, 6]], [([14, 15, 16, 2], [17, 18, 19, 20, 21, 22, 23, 24, 2]), ([9, 2], [8, 2])]
    found = averaged_dpo(beta=1.0)(scored(policy, reference, pair_batch(prompts, sides))).loss

    def mean(prompt: list[int], response: list[int], wrong: int = 0) -> Tensor:
        ids = torch.tensor([prompt + response])
        total = torch.zeros((), dtype=torch.float64)
        for place in range(len(prompt), ids.shape[1]):
            ours, theirs = (model(ids).logits[0, place - 1].log_softmax(-1) for model in (policy, reference))
            total += (ours - theirs)[ids[0, place]]
        return total / (len(response) + wrong)

    def loss(wrong: int) -> list[float]:
        gaps = [
            mean(prompt, chosen, wrong) - mean(prompt, rejected, wrong)
            for prompt, (chosen, rejected) in zip(prompts, sides, strict=True)
        ]
        return [-float(torch.nn.functional.logsigmoid(gap)) for gap in gaps]

    assert found.tolist() == pytest.approx(loss(0), abs=1e-12)
    assert found.tolist() != pytest.approx(loss(1), abs=1e-3)


@pytest.mark.long
@pytest.mark.fault("A04", "D00")
def test_d00_a_pair_of_equal_ids_moves_no_weight(tmp_path: Path) -> None:
    """Different texts with the same tokens count as equal: the pair never reaches a batch."""
    good = [{**PAIR, "prompt": f"Where is Rome, {number}? "} for number in range(3)]
    eos = json.loads((testbed.path("train.jsonl").parent / "policy" / "tokenizer_config.json").read_text())[
        "eos_token"
    ]
    twins = {**PAIR, "rejected": PAIR["chosen"] + eos}
    more = ("--trainer.max_steps", 2, *SGD, "--data.on_bad_row", "drop", "--data.max_dropped", "0.5")
    ok(fit(tmp_path / "without", written(tmp_path / "good.jsonl", good), *more))
    ok(fit(tmp_path / "with", written(tmp_path / "all.jsonl", [*good, twins]), *more))
    assert distance(weights(tmp_path / "without"), weights(tmp_path / "with")) == 0
    ended = fit(tmp_path / "alone", written(tmp_path / "twins.jsonl", [twins] * 4), *more)
    assert ended.code == 2, ended.out
    assert "0 of 4 rows are left" in ended.out
    assert "chosen and rejected are the same" in ended.out


@pytest.mark.fault("B16")
def test_b16_margins_that_leave_no_gradient_are_counted(rows: Path, tmp_path: Path) -> None:
    more = ("--trainer.max_steps", 2, "--model.objective.beta", "1e6", *SGD[:3], "1e-9")
    ok(fit(tmp_path / "run", rows, *more))
    first, second = (line["train/margin/saturated"] for line in metrics(tmp_path / "run"))
    assert first == 0
    assert second > 0.3


@pytest.mark.long
@pytest.mark.fault("D30", "D30b")
@pytest.mark.partition("one batch of eight or eight of one, with a likelihood term")
@pytest.mark.parametrize("objective", ["rpo", pytest.param("cpo", marks=pytest.mark.long)])
def test_d30b_a_likelihood_term_does_not_depend_on_how_a_step_is_cut(
    rows: Path, tmp_path: Path, objective: str
) -> None:
    found = []
    for size, accumulate in ((8, 1), (1, 8), (2, 4)):
        run = tmp_path / f"{size}"
        cut = ("--data.batch_size", size, "--trainer.accumulate_grad_batches", accumulate)
        ok(fit(run, rows, *cut, *SGD, "--trainer.max_epochs", 1, objective=objective))
        found.append((weights(run), metrics(run)))
    for theirs, reported in found[1:]:
        assert distance(found[0][0], theirs) < 1e-6
        for ours, other in zip(found[0][1], reported, strict=True):
            assert other["train/loss"] == pytest.approx(ours["train/loss"], rel=1e-5)


@pytest.mark.long
@pytest.mark.fault("D32")
def test_d32_the_same_seed_gives_the_same_bits(rows: Path, tmp_path: Path) -> None:
    """This includes all random numbers: row order, initial adapter weights and dropout."""
    lora = ("--model.lora", "{rank: 4, dropout: 0.3}", "--trainer.max_epochs", 2, "--data.batch_size", 4)
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        ok(fit(tmp_path / name, rows, *lora, "--seed_everything", seed))
    one, again, other = (weights(tmp_path / name) for name in ("one", "again", "other"))
    assert distance(one, again) == 0
    assert metrics(tmp_path / "one") == metrics(tmp_path / "again")
    assert distance(one, other) > 0


@pytest.mark.fault("D33")
@pytest.mark.parametrize(("double", "tolerance"), [(True, 1e-12), (False, 1e-4)])
def test_d33_a_longer_neighbour_does_not_change_a_value(double: bool, tolerance: float) -> None:
    model = tiny_llama().double() if double else tiny_llama()
    prompts, sides = [[1, 5, 6], [1, 7]], [([8, 9, 2], [10, 2]), ([3 + n % 20 for n in range(99)] + [2], [11, 2])]
    together = response_log_probs(model, pair_batch(prompts, sides))
    alone = response_log_probs(model, pair_batch(prompts[:1], sides[:1]))
    assert together.shape[-1] > 30 * alone.shape[-1]
    assert (together[0, :, : alone.shape[-1]] - alone[0]).abs().max() <= tolerance


@pytest.mark.fault("D35")
@pytest.mark.parametrize("objective", [dpo(), averaged_dpo(), ipo(), sr_dpo()])
def test_d35_swapped_sides_swap_the_sign_of_the_margin(batch: PairBatch, objective: Objective) -> None:
    logps = scored(tiny_llama(0), tiny_llama(1), batch)
    if objective.needs.prompted:
        logps = PairLogProbs(
            logps.policy, logps.reference, logps.mask, prompted=scored(tiny_llama(0), tiny_llama(2), batch)
        )
    margin, back = objective(logps).margin, objective(swapped(logps)).margin
    assert margin is not None
    assert back is not None
    assert margin.abs().min() > 0
    assert back.equal(-margin)


def swapped(logps: PairLogProbs) -> PairLogProbs:
    assert logps.reference is not None
    beside = None if logps.prompted is None else swapped(logps.prompted)
    return PairLogProbs(logps.policy.flip(1), logps.reference.flip(1), logps.mask.flip(1), prompted=beside)

"""The layout check accepts the layouts that a model supports and detects every mistake in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_align.models.lm_head.projection import LogitRule, Projection
from lit_align.models.logps import inputs as reading
from lit_align.models.logps import log_probs as token_log_probs
from lit_align.models.logps.attention import NAME, plan_of
from lit_align.models.logps.check import Choice, choose_layout, smallest_window
from lit_align.models.logps.log_probs import ForwardPass, LogProbReader
from lit_align.models.logps.packing import Packing
from lit_align.models.logps.probe import Distance, Probe, distance
from lit_align.types import PairBatch
from tests.conftest import pair_batch
from tests.models.architectures import CONFIGS, UNFIT, build, named, telling_batch
from tests.models.logps.flash import flash_attention


@pytest.mark.parametrize("name", CONFIGS)
def test_models_that_can_share_prompts(name: str) -> None:
    source = LogProbReader(named(name))
    assert choose_layout(source, telling_batch()) == Choice("shared")
    assert source.layout == "shared"


@pytest.mark.parametrize("name", UNFIT)
def test_models_that_cannot_are_found_out(name: str) -> None:
    """Position biases, states that run through a row, sinks, windows in the model's own code."""
    source = LogProbReader(named(name))
    choice = choose_layout(source, telling_batch())
    assert choice.layout == source.layout == UNFIT[name][1]
    assert choice.warnings[0].startswith("layout shared is not used: ")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_mistake(dtype: torch.dtype) -> None:
    assert choose_layout(LogProbReader(build(CONFIGS["llama"](), dtype)), telling_batch()).layout == "shared"


@pytest.mark.parametrize("mixed", [True, False], ids=["bf16-mixed", "float32"])
def test_attention_in_16_bits_alone_is_checked_in_the_precision_of_the_run(
    mixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32 weights under bf16-mixed; without autocast the run itself says what attention cannot read."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "flash_attention_2", flash_attention)
    model: Any = build(CONFIGS["llama"](), torch.float32)
    model.config._attn_implementation = "flash_attention_2"
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        choice = choose_layout(LogProbReader(model), telling_batch())
    assert choice.layout == ("packed" if mixed else "plain")
    (warning,) = choice.warnings
    assert ("reads every sequence by itself" if mixed else "used unchecked: the model cannot read it") in warning


def without_mask(packing: Packing) -> Tensor:
    """One segment: later pairs see earlier ones, and second segments see chosen responses."""
    return plan_of(replace(packing, segments=torch.tensor([[len(packing.ids), 0, 0]])))


def second_sees_first(packing: Packing) -> Tensor:
    segments = packing.segments.clone()
    segments[:, 2] = segments[:, 0]
    return plan_of(replace(packing, segments=segments))


def second_sees_nothing(packing: Packing) -> Tensor:
    segments = packing.segments.clone()
    segments[:, 2] = 0
    return plan_of(replace(packing, segments=segments))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "wrong", [without_mask, second_sees_first, second_sees_nothing], ids=lambda wrong: wrong.__name__
)
def test_wrong_masks_are_seen(wrong: Callable[[Packing], Tensor], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "plan_of", wrong)
    choice = choose_layout(LogProbReader(named(name)), telling_batch())
    assert choice.layout != "shared"
    assert "log-probs differ by" in choice.warnings[0]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_wrong_positions_are_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions that count on through the row."""
    right = reading.pack

    def counted(batch: PairBatch, shared: Tensor, prefix: int) -> Packing:
        packing = right(batch, shared, prefix)
        return replace(packing, positions=torch.arange(len(packing.ids)))

    monkeypatch.setattr(reading, "pack", counted)
    choice = choose_layout(LogProbReader(named(name)), telling_batch())
    assert choice.layout == ("packed" if name == "llama" else "padded")  # rotary positions are relative
    assert "log-probs differ by" in choice.warnings[0]


def test_a_wrong_logit_rule_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that does something else to its logits gets whole logits."""
    monkeypatch.setattr(token_log_probs, "logit_rule", lambda model: LogitRule(scale=1.1))
    source = LogProbReader(named("llama"))
    choice = choose_layout(source, telling_batch())
    assert (choice.layout, len(choice.warnings)) == ("plain", 3)
    assert source.model.config._attn_implementation == "sdpa"


def test_a_wrong_gradient_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probs that are right, with a hundredth of their gradient lost in the head."""
    right = Projection.backward
    monkeypatch.setattr(Projection, "backward", lambda self, *given: 0.99 * right(self, *given))
    choice = choose_layout(LogProbReader(named("gpt2")), telling_batch())
    assert choice.layout == "plain"
    assert all("gradients by 1.0e-02" in line for line in choice.warnings)


def test_a_requested_layout_is_used_with_a_warning() -> None:
    source = LogProbReader(named("gpt_neo_local"), ForwardPass(layout="shared"))
    choice = choose_layout(source, telling_batch())
    assert choice.layout == source.layout == "shared"
    (warning,) = choice.warnings
    assert warning.startswith(
        "layout shared is used as requested, but it is not exact for this model: log-probs differ by"
    )
    assert (
        choose_layout(LogProbReader(named("llama"), ForwardPass(layout="packed")), telling_batch()).layout == "packed"
    )


def test_pairs_that_never_part_are_no_proof() -> None:
    """With nothing of its own in any rejected side, sharing would pass unseen in a model with a position bias."""
    batch = pair_batch([[3, 4, 5], [6, 7]], [([8, 9, 10, 11], [8, 9]), ([9, 11, 13, 8], [9])])
    assert choose_layout(LogProbReader(named("mpt_alibi")), batch).layout == "packed"
    assert choose_layout(LogProbReader(named("mpt_alibi")), batch.chosen_side()).layout == "packed"


@pytest.mark.parametrize("sides", [([], [7, 9, 2]), ([7, 9, 2], [])], ids=["rejected alone", "chosen alone"])
def test_rows_with_one_response(sides: tuple[list[int], list[int]]) -> None:
    """One-sided pairs are read from the side that is present."""
    assert choose_layout(LogProbReader(named("llama")), pair_batch([[1, 5, 6]], [sides])) == Choice("shared")


def test_windows_bound_what_the_check_speaks_for() -> None:
    """A window of 6 that the pairs went beyond is proved; one of 512 is not, and longer batches are padded."""
    proved = LogProbReader(named("mistral_window"))
    choose_layout(proved, telling_batch())
    assert proved.reach is None
    config = CONFIGS["mistral_window"]()
    config.sliding_window = 512
    open_ = LogProbReader(build(config))
    choose_layout(open_, telling_batch())
    assert (open_.layout, open_.reach) == ("shared", 512)


def test_windows_by_name() -> None:
    config: dict[str, Any] = {"window_size": 9, "attention_chunk_size": 7, "max_window_layers": 1, "use_window": True}
    assert smallest_window(config) == 7
    assert smallest_window({"sliding_window": None}) is None


def test_modes_and_weights_are_left_alone() -> None:
    """Every layer's mode, gradients, and whether weights take any."""
    model = named("llama").train()
    model.model.norm.eval()
    modes = [module.training for module in model.modules()]
    choose_layout(LogProbReader(model), telling_batch())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    frozen = named("llama").requires_grad_(False)
    assert choose_layout(LogProbReader(frozen), telling_batch()).layout == "shared"


def test_autocast_is_off_while_it_looks() -> None:
    seen: list[torch.dtype] = []
    model = build(CONFIGS["llama"](), torch.float32)
    model.model.layers[0].mlp.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        choose_layout(LogProbReader(model), telling_batch())
    assert set(seen) == {torch.float32}


def test_distances() -> None:
    """By hand: |−1 − (−1.5)| = 0.5 nats; ‖(0, 1)‖ / ‖(0, 2)‖ = 0.5. What is not finite is within nothing."""
    truth = Probe(torch.tensor([[[-1.5]]]), torch.tensor([[0.0, 2.0]]))
    found = distance(Probe(torch.tensor([[[-1.0]]]), torch.tensor([[0.0, 1.0]])), truth)
    assert found == Distance(0.5, 0.5)
    assert found.within(Distance(0.5, 0.6))
    assert not found.within(Distance(0.6, 0.4))
    assert not distance(Probe(torch.tensor([[[torch.nan]]]), None), truth).within(Distance(1e9, 1e9))


def test_the_name_is_known_to_transformers() -> None:
    """Registered names: a model can be loaded with it, which is how a copy of a model in use comes up."""
    model = named("llama")
    model.set_attn_implementation(NAME)
    ids = torch.tensor([[3, 4, 5]])
    assert isinstance(model, nn.Module)
    assert model(input_ids=ids).logits.equal(named("llama")(input_ids=ids).logits)


def test_sharded_models_are_compared_by_log_probs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient of a few pairs alone would leave the shards; and processes choose alike."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model = build(CONFIGS["llama"](), torch.float32)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        source = LogProbReader(model)
        assert choose_layout(source, telling_batch()) == Choice("shared")
        honest = iter([True])  # the plain layout itself can be read everywhere
        monkeypatch.setattr(dist, "all_reduce", lambda bad, op: bad.fill_(0.0 if next(honest, False) else 1.0))
        others = choose_layout(source, telling_batch())
    finally:
        dist.destroy_process_group()
    assert others.layout == "plain"
    assert others.warnings[0].startswith(
        "layout shared is not used: it is not exact on another process. plain is used"
    )

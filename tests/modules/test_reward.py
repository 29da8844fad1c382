"""The reward module compared with computations by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from peft import PeftModel
from torch.nn import functional as F

from lit_align.callbacks.export import Export
from lit_align.data import PreferenceData
from lit_align.models import ForwardPass, Loading, LoRA, ScoreReader
from lit_align.models.score_model import ScoreModel, load_score_model
from lit_align.modules import Constant, LitReward
from tests.modules.test_preference import Watch, sgd, trainer

POLICY = "testbed:policy"
pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|across ranks is zero)")


def pairs(rows: Path, batch_size: int = 3) -> PreferenceData:
    return PreferenceData(train=str(rows), tokenizer=POLICY, batch_size=batch_size)


def run(rows: Path, folder: Path, batch_size: int, **settings: Any) -> tuple[LitReward, Watch]:
    module, watch = LitReward(POLICY, optimizer=sgd, schedule=Constant()), Watch()
    trainer(folder, watch, max_epochs=1, **settings).fit(module, pairs(rows, batch_size))
    return module, watch


def test_a_step_is_the_gradient_of_the_mean_over_its_pairs(rows: Path, tmp_path: Path) -> None:
    """Eleven pairs in one step, in micro-batches of three: W - dL/dW with a learning rate of 1."""
    module, watch = run(rows, tmp_path, 3, accumulate_grad_batches=4)
    model = load_score_model(POLICY, Loading(), head="fresh")
    scores = torch.cat([ScoreReader(model).scores(batch) for batch in watch.batches])
    assert len(scores) == 11
    (-F.logsigmoid(scores[:, 0] - scores[:, 1])).mean().backward()
    after = dict(module.model.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(parameter.detach() - parameter.grad, after[name].detach(), atol=2e-6), name


def test_the_layout_of_a_step_does_not_matter(rows: Path, tmp_path: Path) -> None:
    one, _ = run(rows, tmp_path, 11)
    two, _ = run(rows, tmp_path, 2, accumulate_grad_batches=6)
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-6), name


def test_how_the_model_is_read_does_not_matter(rows: Path, tmp_path: Path) -> None:
    """Compare shared prompts in chunks of one or two pairs with padded rows of the whole batch."""
    ways = ForwardPass(tokens_at_once=200), ForwardPass(layout="padded", tokens_at_once=0)
    one, two = (LitReward(POLICY, optimizer=sgd, schedule=Constant(), forward_pass=how) for how in ways)
    seen = []
    for module in (one, two):
        host = trainer(tmp_path, max_epochs=1, log_every_n_steps=1)
        host.fit(module, pairs(rows, 11))
        seen.append({name: float(value) for name, value in host.callback_metrics.items() if "throughput" not in name})
    assert [module.readers.layout(module.model) for module in (one, two)] == ["shared", "padded"]
    assert seen[0] == pytest.approx(seen[1], rel=1e-4, abs=1e-5)
    assert len(seen[0]) > 5
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-6), name


def test_a_size_of_logits_is_refused_where_there_are_none() -> None:
    with pytest.raises(ValueError, match=r"model\.forward_pass\.tile_mb is 8\.0; a reward model has no logits"):
        LitReward(POLICY, forward_pass=ForwardPass(tile_mb=8.0))


def test_gradients_are_gone_before_the_next_forward_pass(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four batches of three, two of them to a step: there are some behind the first of each."""
    there: list[bool] = []
    inner = LitReward.training_step

    def step(self: LitReward, *words: Any) -> Any:
        there.append(any(weight.grad is not None for weight in self.parameters()))
        return inner(self, *words)

    monkeypatch.setattr(LitReward, "training_step", step)
    run(rows, tmp_path, 3, accumulate_grad_batches=2)
    assert there == [False, True] * (len(there) // 2)
    assert len(there) >= 4


def test_rows_with_one_response_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"prompt": "2 + 2?", "completion": " 4", "label": true}\n', "utf-8")
    data = PreferenceData(train=str(path), tokenizer=POLICY, batch_size=1)
    with pytest.raises(ValueError, match="trained on pairs"):
        trainer(tmp_path, max_epochs=1).fit(LitReward(POLICY), data)


def test_a_margin_column_is_honoured(rows: Path, tmp_path: Path) -> None:
    import json

    lines = [json.loads(line) for line in rows.read_text("utf-8").splitlines()]
    path = tmp_path / "margins.jsonl"
    path.write_text("\n".join(json.dumps({**line, "margin": 3.0}) for line in lines), "utf-8")
    plain, with_margin = (LitReward(POLICY, optimizer=sgd, schedule=Constant()) for _ in range(2))
    for module, source in ((plain, rows), (with_margin, path)):
        Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=tmp_path,
        ).fit(module, pairs(source, 11))
    assert (
        float(with_margin.trainer.callback_metrics["train/loss"])
        > float(plain.trainer.callback_metrics["train/loss"]) + 1
    )


def test_an_adapter_and_the_head_alone_are_trained(rows: Path, tmp_path: Path) -> None:
    """The adapter is the identity at first, so the head moves as it does without one."""
    plain, _ = run(rows, tmp_path, 11)
    module = LitReward(POLICY, lora=LoRA(rank=2), optimizer=sgd, schedule=Constant())
    start = dict(module.build_trained_model().named_parameters())
    trainer(tmp_path, max_epochs=1).fit(module, pairs(rows, 11))
    moved = {name for name, weight in module.model.named_parameters() if not torch.equal(weight, start[name])}
    assert any("lora_B" in name for name in moved)
    assert all("lora_" in name or "score.modules_to_save" in name for name in moved)
    (head,) = (weight for name, weight in module.model.named_parameters() if "score.modules_to_save" in name)
    assert torch.allclose(head, plain.model.model.score.weight, atol=1e-6)  # type: ignore[arg-type]


def test_an_exported_adapter_is_the_model(rows: Path, tmp_path: Path) -> None:
    """Merged, and as an adapter on the policy that PEFT puts together."""
    torch.manual_seed(0)
    module = LitReward(POLICY, lora=LoRA(rank=2), optimizer=sgd, schedule=Constant())
    host = trainer(tmp_path, max_epochs=1)
    host.fit(module, pairs(rows, 11))
    batch = next(iter(module.trainer.datamodule.train_dataloader()))  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = module(batch)
    assert expected.std() > 0.1
    for form in ("adapter", "merged"):
        export = Export(form=form)  # type: ignore[arg-type]
        export.on_fit_end(host, module)
        assert export.folder is not None
        if form == "adapter":
            base = load_score_model(POLICY, Loading(), head="fresh").model
            found = ScoreModel(PeftModel.from_pretrained(base, str(export.folder)).eval())  # type: ignore[arg-type]
        else:
            found = load_score_model(str(export.folder), Loading())
        with torch.no_grad():
            torch.testing.assert_close(
                ScoreReader(found).scores(batch), expected, rtol=1e-3, atol=1e-3
            )  # merging rounds

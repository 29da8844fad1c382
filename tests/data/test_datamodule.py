from __future__ import annotations

import hashlib
import warnings
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lit_align.data import DataError, PreferenceData
from lit_align.data.prepared.mixture import Source
from lit_align.data.text.render import QUALITY_PROMPT
from lit_align.types import PairBatch
from tests.data.conftest import Write
from tests.data.examples import pair_row, turns
from tests.data.families import TEMPLATES

COUNT = 11


@pytest.fixture
def rows(write: Write) -> str:
    """Eleven good pairs of different lengths: no batch size divides them."""
    return str(write([{**pair_row(number, 1 + number % 4), "id": number} for number in range(COUNT)]))


@pytest.fixture
def make(rows: str, saved: str) -> Any:
    """Data of the eleven pairs with the plain tokenizer."""

    def build(**settings: Any) -> PreferenceData:
        return PreferenceData(**{"train": rows, "tokenizer": saved, "batch_size": 2, **settings})

    return build


class Recorder(LightningModule):
    """Writes down which rows it is given, and stops training where it is told to."""

    def __init__(self, stop_after: int = 10**9) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []
        self.evaluated: list[int] = []
        self.stop_after = stop_after

    def training_step(self, batch: PairBatch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch.index.tolist())
        return self.weight * batch.weight.sum()

    def on_train_batch_end(self, outputs: Any, batch: PairBatch, batch_idx: int) -> None:
        if len(self.seen) == self.stop_after:
            self.trainer.save_checkpoint(Path(self.trainer.default_root_dir) / "stopped.ckpt")
            raise KeyboardInterrupt

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        self.evaluated += batch.index[batch.weight > 0].tolist()

    def predict_step(self, batch: PairBatch, batch_idx: int) -> list[int]:
        indices: list[int] = batch.index.tolist()
        return indices

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **settings: Any) -> Trainer:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return Trainer(accelerator="cpu", default_root_dir=folder, max_epochs=2, **{**quiet, **settings})


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"batch_size": 0}, "data.batch_size is 0; expected 1 or more"),
            ({"eval_batch_size": -1}, "data.eval_batch_size is -1"),
            ({"max_length": 0}, "data.max_length is 0; expected 4 or more"),
            ({"max_length": -5}, "data.max_length is -5"),
            ({"max_length": 64, "max_response_length": 64}, "data.max_response_length is 64; expected 1 to 63"),
            ({"max_dropped": 1.5}, "data.max_dropped is 1.5; expected 0 to 1"),
            ({"max_dropped": float("nan")}, "data.max_dropped is nan"),
            ({"num_workers": -1}, "data.num_workers is -1"),
            ({"min_gap": -1}, "data.min_gap is -1"),
            ({"limit": 0}, "data.limit is 0; expected 1 or more"),
            ({"holdout": 1.0}, "data.holdout is 1.0; expected a share above 0 and below 1"),
            ({"holdout": 0.1, "validation": "a.jsonl"}, "data.validation and data.holdout are both set"),
            ({"columns": {"promt": "q"}}, "'promt' is not a column of any format; did you mean 'prompt'"),
        ],
    )
    def test_a_number_out_of_range_is_refused_at_once(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            PreferenceData(**settings)

    def test_a_stage_without_its_source_or_tokenizer(self, make: Any) -> None:
        with pytest.raises(ValueError, match="data.test is not set"):
            make().setup("test")
        with pytest.raises(ValueError, match="data.tokenizer is not set"):
            make(tokenizer=None).setup("fit")

    def test_what_is_missing_on_disk_is_named(self, make: Any) -> None:
        with pytest.raises(FileNotFoundError, match=r"data file not found: \./pairs\.jsonl"):
            make(train="./pairs.jsonl").setup("fit")
        with pytest.raises(FileNotFoundError, match=r"tokenizer folder not found: \./model"):
            make(tokenizer="./model").setup("fit")


class TestSetup:
    def test_only_the_splits_of_the_stage_are_read_and_each_once(self, make: Any, rows: str) -> None:
        data = make(validation=rows, test="./not-read.jsonl")
        data.setup("validate")
        assert set(data.splits) == {"validation"}
        first = data.splits["validation"]
        data.setup("fit")
        assert set(data.splits) == set(data.lengths) == {"train", "validation"}
        assert data.splits["validation"] is first

    def test_bad_rows_stop_before_anything_else(self, make: Any, write: Write) -> None:
        with pytest.raises(DataError, match=r"bad\.jsonl:1: rejected: found null"):
            make(train=str(write([{**pair_row(0), "rejected": None}], "bad.jsonl"))).setup("fit")

    @pytest.mark.fault("A21", "A22", "A23")
    def test_what_is_odd_about_the_data_is_said(self, make: Any, rows: str, write: Write) -> None:
        swapped = {"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": "b", "rejected": "a"}
        train = write([*swapped, pair_row(0), pair_row(0), {**pair_row(1), "chosen": ""}], "odd.jsonl")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make(train=str(train), validation=str(train), on_bad_row="drop", max_dropped=0.5).setup("fit")
        text = "\n".join(str(warning.message) for warning in caught)
        assert "1 row was left out; 4 pairs are used" in text
        assert "2 pairs also occur with chosen and rejected swapped" in text
        assert "1 pair is a copy of an earlier one" in text
        assert "data.validation" in text
        assert "4 pairs are in the training data as well" in text

    def test_a_limit_is_of_the_training_pairs_alone(self, make: Any, rows: str) -> None:
        data, whole = make(limit=4, validation=rows), make(validation=rows)
        for each in (data, whole):
            each.setup("fit")
        assert list(data.splits["train"].pairs) == list(whole.splits["train"].pairs[:4])
        assert data.lengths["train"].pairs == 4
        assert data.lengths["validation"].pairs == COUNT
        next(iter(whole.train_dataloader()))
        data.train_dataloader()
        with pytest.raises(ValueError, match="training data is not that of the checkpoint"):
            data.load_state_dict(whole.state_dict())

    def test_good_data_is_met_with_silence(self, make: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            make().setup("fit")

    def test_prompted_batches_come_when_asked_for(self, make: Any) -> None:
        plain, prompted = make(), make(prompted=True)
        for data in (plain, prompted):
            data.setup("fit")
        batch = next(iter(prompted.train_dataloader()))
        assert next(iter(plain.train_dataloader())).prompted is None
        assert torch.equal(batch.prompted.lengths, batch.lengths)
        row = batch.prompted.input_ids[0, 0][batch.prompted.attention_mask[0, 0]]
        assert prompted.decode(row.tolist()).startswith(f"{QUALITY_PROMPT} Question")

    def test_overfit_batches_would_replace_the_batches(self, make: Any, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"overfit_batches would replace .* expected data\.limit"):
            trainer(tmp_path, overfit_batches=1).fit(Recorder(), make())


class TestTokensPerBatch:
    """The eleven rows are 14 to 17 tokens wide: 70 tokens hold two pairs, both sides and padding."""

    @pytest.mark.parametrize("stop", range(1, 10))
    @pytest.mark.resume("which rows come next, by rows and by a token budget")
    def test_a_resumed_run_sees_what_a_whole_one_sees(self, make: Any, tmp_path: Path, stop: int) -> None:
        whole, first, second = Recorder(), Recorder(stop_after=stop), Recorder()
        settings = {"batch_size": None, "tokens_per_batch": 70}
        trainer(tmp_path).fit(whole, make(**settings))
        with pytest.raises(SystemExit):
            trainer(tmp_path).fit(first, make(**settings))
        again = make(**settings)
        trainer(tmp_path).fit(second, again, ckpt_path=tmp_path / "stopped.ckpt", weights_only=True)
        assert first.seen + second.seen == whole.seen
        assert sorted(row for batch in whole.seen for row in batch) == sorted(2 * list(range(COUNT)))
        assert len(whole.seen) == 2 * again.train_batches > stop

    def test_evaluation_takes_every_pair_once_in_order(self, make: Any, rows: str, tmp_path: Path) -> None:
        data = make(batch_size=None, tokens_per_batch=70, predict=rows, train=None)
        batches = trainer(tmp_path).predict(Recorder(), data)
        assert batches is not None
        assert [row for batch in batches for row in batch] == list(range(COUNT))
        assert {len(batch) for batch in batches} == {1, 2}

    def test_how_full_batches_are_is_known_before_a_loader(self, make: Any) -> None:
        data = make(batch_size=None, tokens_per_batch=70)
        data.setup("fit")
        padding = data.padding
        assert padding.batches == data.train_batches
        assert (padding.fewest, padding.most, padding.copies) == (1, 2, 0)
        assert 0 <= padding.padding < 0.3

    def test_a_pair_that_does_not_fit_is_named_with_both_numbers(self, make: Any, tmp_path: Path) -> None:
        with pytest.raises(
            ValueError, match=r"tokens_per_batch is 10, but the two sides of the longest pair take 2 × "
        ):
            trainer(tmp_path).fit(Recorder(), make(batch_size=None, tokens_per_batch=10))


class TestTruncationAndTemplates:
    def test_settings_reach_the_pairs(self, make: Any) -> None:
        left, right = make(max_length=9), make(max_length=9, truncate_prompt="right", min_response=4)
        for data in (left, right):
            data.setup("fit")
        tail, head = (data.decode(data.splits["train"].store[0].prompt) for data in (left, right))
        assert "Question 0:".endswith(tail)
        assert "Question 0:".startswith(head)
        assert len(tail) < len("Question 0:")
        assert len(head) < len("Question 0:")
        assert left.longest == right.longest == 9

    @pytest.mark.fault("A40")
    def test_cut_responses_can_be_left_out(self, make: Any) -> None:
        data = make(max_response_length=5, truncation="cut_prompts", max_dropped=1.0)
        data.setup("fit")
        split = data.splits["train"]
        assert not split.store.truncated.any()
        assert split.dropped["longer than the limits"] == split.read - len(split.store) > 0

    @pytest.mark.parametrize("settings", [{"min_response": 3}, {"truncate_prompt": "right"}])
    def test_an_option_without_effect_is_an_error(self, make: Any, settings: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"no effect with data\.truncation drop"):
            make(truncation="drop", **settings)

    def test_a_quality_prompt_that_nothing_compares_with_is_an_error(self, make: Any) -> None:
        with pytest.raises(ValueError, match=r"data\.quality_prompt would have no effect"):
            make(quality_prompt="Well:").setup("fit")
        with pytest.raises(ValueError, match=r"data\.quality_prompt_position would have no effect"):
            make(quality_prompt_position="last_turn").setup("fit")
        make(quality_prompt="Well:", quality_prompt_position="last_turn", prompted=True).setup("fit")

    @pytest.mark.parametrize(
        ("settings", "keys"),
        [
            ({"pairing": "random_one"}, "data.pairing"),
            ({"min_gap": 1}, "data.min_gap"),
            ({"pairing": "best_vs_rest", "min_gap": 1}, "data.pairing and data.min_gap"),
        ],
    )
    def test_settings_of_rankings_without_rankings_are_an_error(
        self, make: Any, rows: str, write: Write, settings: dict[str, Any], keys: str
    ) -> None:
        for read in (lambda data: data.setup("fit"), PreferenceData.prepare_all):
            with pytest.raises(ValueError, match=f"^{keys} would have no effect: no source holds rankings"):
                read(make(**settings))
        ranking = write([{"prompt": "p", "responses": ["a", "b"], "scores": [3, 1]}], "ranking.jsonl")
        make(**settings, validation=str(ranking)).setup("fit")
        make(**settings, validation=str(ranking), test=rows).setup("test")
        with pytest.raises(ValueError, match="no source holds rankings"):
            make(**settings, test=rows, train=None).setup("test")

    def test_a_gap_that_no_ranking_has_scores_for_is_an_error(self, make: Any, write: Write) -> None:
        ranking = {"prompt": "p", "responses": ["a", "b"], "choice": 1}
        data = make(train=str(write([ranking], "ranking.jsonl")), min_gap=1)
        with pytest.raises(ValueError, match=r"data\.min_gap would have no effect: no ranking has scores"):
            data.setup("fit")
        close = {**ranking, "prompt": "q", "scores": [1, 1.5]}
        make(train=str(write([ranking, close], "close.jsonl")), min_gap=1).setup("fit")

    def test_a_template_from_a_file_and_its_hash(self, make: Any, write: Write, tmp_path: Path) -> None:
        chat = write([{"chosen": turns("a", "b"), "rejected": turns("a", "c")}], "chat.jsonl")
        with pytest.raises(ValueError, match="no chat template"):
            make(train=str(chat)).setup("fit")
        assert make().template_hash is None
        hashes = []
        for name in ("chatml", "zephyr"):
            data = make(train=str(chat), chat_template=str(TEMPLATES / f"{name}.jinja"))
            data.setup("fit")
            hashes.append(data.template_hash)
            next(iter(data.train_dataloader()))
            assert data.state_dict()["template"] == data.template_hash
        files = (TEMPLATES / f"{name}.jinja" for name in ("chatml", "zephyr"))
        assert hashes == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]

    def test_the_date_of_a_template_is_the_runs(self, make: Any, write: Write, tmp_path: Path) -> None:
        """It is in the ids, in the state, and named if a checkpoint has another."""
        chat = str(write([{"chosen": turns("a", "b"), "rejected": turns("a", "c")}], "chat.jsonl"))
        template = tmp_path / "dated.jinja"
        template.write_text(
            "{{ strftime_now('%d %B %Y') }}" + (TEMPLATES / "chatml.jinja").read_text("utf-8"), "utf-8"
        )
        states = []
        for day, told in (("2024-07-26", "26 July 2024"), ("2024-07-27", "27 July 2024")):
            data = make(train=chat, chat_template=str(template), template_date=day)
            data.setup("fit")
            assert data.decode(data.splits["train"].store[0].prompt).startswith(told)
            data.train_dataloader()
            states.append(data.state_dict())
        with pytest.raises(ValueError, match=r"data\.template_date\) was 2024-07-26 and is 2024-07-27"):
            data.load_state_dict(states[0])
        without = make(train=chat, chat_template=str(TEMPLATES / "chatml.jinja"), template_date="2024-07-26")
        assert without.told_date is None

    def test_what_is_no_date(self, make: Any) -> None:
        with pytest.raises(ValueError, match=r"data\.template_date is '26 Jul'; expected a date such as 2024-07-26"):
            make(template_date="26 Jul")

    def test_another_template_is_named_on_resume(self, make: Any, write: Write) -> None:
        chat = str(write([{"chosen": turns("a", "b"), "rejected": turns("a", "c")}], "chat.jsonl"))
        first, second = (make(train=chat, chat_template=str(TEMPLATES / f"{n}.jinja")) for n in ("chatml", "zephyr"))
        for data in (first, second):
            data.setup("fit")
        next(iter(first.train_dataloader()))
        with pytest.raises(ValueError, match="the hash of the chat template was"):
            second.load_state_dict(first.state_dict())

    def test_several_turns_reach_the_batch_as_a_mask(self, make: Any, write: Write) -> None:
        row = {"chosen": turns("a", "B", "c", "D"), "rejected": turns("a", "X", "y", "Z")}
        settings = {"train": str(write([row], "chat.jsonl")), "chat_template": str(TEMPLATES / "chatml.jinja")}
        data = make(**settings, score="all_turns")
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        for side, said in enumerate((("B", "D"), ("X", "Z"))):
            found = data.decode(batch.input_ids[0, side][batch.mask[0, side]].tolist())
            assert [found.count(word) for word in said] == [1, 1]
            assert "user" not in found
        assert data.splits["train"].store.lengths.tolist() == batch.lengths.tolist()
        with pytest.raises(DataError, match="differ before the response"):
            make(**settings).setup("fit")


class TestForOthers:
    def test_a_row_is_found_by_its_index(self, make: Any) -> None:
        data = make()
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        row = int(batch.index[1])
        text = data.decode(batch.input_ids[1, 0][batch.mask[1, 0]].tolist())
        assert text == f"{data.rows['train'][row].chosen}</s>"
        assert data.rows["train"][row].where == f"rows.jsonl:{row + 1}"
        assert data.extra("train", row) == {"id": row}

    def test_prompts_to_sample_are_taken_evenly(self, make: Any, rows: str) -> None:
        data = make(validation=rows)
        data.setup("fit")
        prompts = data.sample_prompts(3)
        assert [prompt.text for prompt in prompts] == ["Question 0:", "Question 3:", "Question 7:"]
        assert [data.decode(prompt.ids) for prompt in prompts] == [prompt.text for prompt in prompts]
        assert len(data.sample_prompts(100)) == COUNT
        assert data.sample_prompts(0) == []

    def test_ends_of_responses_are_eos_and_the_end_of_turn(
        self, make: Any, llama3: Any, write: Write, tmp_path: Path
    ) -> None:
        llama3.save_pretrained(tmp_path / "llama3")
        chat = write([{"chosen": turns("a", "b"), "rejected": turns("a", "c")}], "chat.jsonl")
        data = make(train=str(chat), tokenizer=str(tmp_path / "llama3"))
        data.setup("fit")
        assert {data.decode([token]) for token in data.stop_tokens} == {"<|eot_id|>", "<|end_of_text|>"}
        assert data.sample_prompts(1)[0].text.endswith("assistant<|end_header_id|>\n\n")

    def test_all_processes_tell_a_chat_template_the_date_of_the_first(self, make: Any) -> None:
        """They may start on both sides of midnight."""
        first = date(2024, 7, 26)
        strategy = SimpleNamespace(broadcast=lambda value: first)
        data = make(template_date="2024-07-27")
        data.trainer = SimpleNamespace(
            strategy=strategy, global_rank=1, world_size=2, accumulate_grad_batches=1, progress_bar_callback=None
        )
        data.setup("fit")
        assert data.template_date == first

    def test_batches_are_counted_without_a_loader_or_a_trainer(self, make: Any) -> None:
        data = make()
        data.setup("fit")
        assert data.train_batches == 6
        data.trainer = SimpleNamespace(global_rank=1, world_size=2, accumulate_grad_batches=1, limit_train_batches=1.0)
        assert data.train_batches == len(data.train_dataloader()) == 3


class TestRuns:
    def test_every_epoch_has_every_pair_once_in_another_order(self, make: Any, rows: str, tmp_path: Path) -> None:
        module, data = Recorder(), make(validation=rows, eval_batch_size=4)
        trainer(tmp_path, num_sanity_val_steps=0).fit(module, data)
        first, second = (module.seen[start : start + 6] for start in (0, 6))
        for epoch in (first, second):
            assert sorted(row for batch in epoch for row in batch) == list(range(COUNT))
        assert first != second
        assert module.evaluated == 2 * list(range(COUNT))

    @pytest.mark.parametrize("stop", range(1, 12))
    @pytest.mark.resume("which rows come next, by rows and by a token budget")
    def test_a_resumed_run_sees_what_a_whole_one_sees(self, make: Any, tmp_path: Path, stop: int) -> None:
        whole, first, second = Recorder(), Recorder(stop_after=stop), Recorder()
        trainer(tmp_path).fit(whole, make())
        with pytest.raises(SystemExit):
            trainer(tmp_path).fit(first, make())
        trainer(tmp_path).fit(second, make(), ckpt_path=tmp_path / "stopped.ckpt", weights_only=True)
        assert first.seen + second.seen == whole.seen
        assert len(whole.seen) == 12

    @pytest.mark.resume("which rows come next in an epoch that is cut short")
    def test_an_epoch_that_the_trainer_cuts_short_is_resumed_as_well(self, make: Any, tmp_path: Path) -> None:
        whole, first, second = Recorder(), Recorder(stop_after=4), Recorder()
        trainer(tmp_path, limit_train_batches=4).fit(whole, make())
        with pytest.raises(SystemExit):
            trainer(tmp_path, limit_train_batches=4).fit(first, make())
        trainer(tmp_path, limit_train_batches=4).fit(
            second, make(), ckpt_path=tmp_path / "stopped.ckpt", weights_only=True
        )
        assert first.seen + second.seen == whole.seen

    def test_predictions_come_in_the_order_of_the_data(self, make: Any, rows: str, tmp_path: Path) -> None:
        data = make(predict=rows, train=None, eval_batch_size=3)
        batches = trainer(tmp_path).predict(Recorder(), data)
        assert batches is not None
        assert [row for batch in batches for row in batch] == list(range(COUNT))
        assert set(data.splits) == {"predict"}


class TestState:
    @pytest.fixture
    def state(self, make: Any) -> dict[str, Any]:
        data = make()
        data.setup("fit")
        next(iter(data.train_dataloader()))
        state: dict[str, Any] = data.state_dict()
        return state

    def test_it_can_come_before_or_after_the_loader(self, make: Any, state: dict[str, Any]) -> None:
        before, after = make(), make()
        for data in (before, after):
            data.setup("fit")
        before.load_state_dict(state)
        rest = [batch.index.tolist() for batch in before.train_dataloader()]
        loader = after.train_dataloader()
        after.load_state_dict(state)
        assert [batch.index.tolist() for batch in loader] == rest
        assert len(rest) == 5

    @pytest.mark.fault("D02d")
    def test_another_training_file_is_refused(self, make: Any, state: dict[str, Any], write: Write) -> None:
        data = make(train=str(write([pair_row(number) for number in range(COUNT)], "other.jsonl")))
        data.setup("fit")
        with pytest.raises(
            ValueError, match="training data is not that of the checkpoint: the fingerprint of the tokenized pairs was"
        ):
            data.load_state_dict(state)

    @pytest.mark.parametrize("settings", [{"max_length": 12}, {"prompted": True, "max_length": 200}])
    def test_so_is_the_same_file_tokenized_otherwise(
        self, make: Any, state: dict[str, Any], settings: dict[str, Any]
    ) -> None:
        data = make(**settings)
        data.setup("fit")
        with pytest.raises(ValueError, match="fingerprint"):
            data.load_state_dict(state)

    @pytest.mark.parametrize(
        ("settings", "words"), [({"batch_size": 3}, "pairs per batch of all processes"), ({"seed": 1}, "data.seed")]
    )
    @pytest.mark.fault("D02b")
    def test_other_batches_are_refused_in_the_middle_of_an_epoch_and_welcome_at_its_end(
        self, make: Any, state: dict[str, Any], settings: dict[str, Any], words: str
    ) -> None:
        data = make(**settings)
        data.setup("fit")
        with pytest.raises(ValueError, match=words):
            data.load_state_dict(state)
        data.load_state_dict({**state, "position": {"done": 0, "epoch": 1}})

    def test_evaluation_does_not_mind_a_training_position(self, make: Any, rows: str, state: dict[str, Any]) -> None:
        data = make(validation=rows)
        data.setup("validate")
        data.load_state_dict(state)
        assert data.state_dict() == {}


class TestSources:
    def test_a_holdout_is_the_validation(self, make: Any) -> None:
        data = make(holdout=3)
        data.setup("fit")
        train, held = ({pair.where for pair in data.splits[name].pairs} for name in ("train", "validation"))
        assert (len(train), len(held)) == (COUNT - 3, 3)
        assert not train & held
        alone = make(holdout=3)
        alone.setup("validate")
        assert {pair.where for pair in alone.splits["validation"].pairs} == held

    def test_another_seed_holds_others_out(self, make: Any) -> None:
        found = set()
        for seed in range(5):
            data = make(holdout=3, seed=seed)
            data.setup("validate")
            found.add(tuple(pair.where for pair in data.splits["validation"].pairs))
        assert len(found) > 1

    def test_pairs_of_a_mixture_know_their_source(self, make: Any, rows: str, write: Write) -> None:
        other = write([{"q": "Why?", "responses": ["a", "b", "c"], "scores": [1, 2, 3]}], "other.jsonl")
        second = Source(str(other), columns={"prompt": "q"})
        data = make(train=[rows, second], pairing="best_vs_rest", min_gap=2)
        data.setup("fit")
        split = data.splits["train"]
        assert split.sources == (rows, str(other))
        assert split.source_index.tolist() == [0] * COUNT + [1]
        assert split.scores[-1].tolist() == [3, 1]
        assert split.format == "pairs, ranking"

    def test_weights_and_margins_reach_the_batches(self, make: Any, write: Write) -> None:
        weighted = write([{**pair_row(n), "weight": n + 1, "margin": n / 2} for n in range(3)], "weighted.jsonl")
        data = make(train=str(weighted), validation=str(weighted), batch_size=3)
        data.setup("fit")
        for loader in (data.train_dataloader(), data.val_dataloader()):
            (batch,) = loader
            order = batch.index.argsort()
            assert batch.weight[order].tolist() == [1, 2, 3]
            assert batch.margin[order].tolist() == [0, 0.5, 1]
            assert batch.preference_probability is None

    def test_a_position_belongs_to_its_weights(self, make: Any, write: Write) -> None:
        plain = make(train=str(write(map(pair_row, range(4)), "plain.jsonl")))
        weighted = make(train=str(write([{**pair_row(n), "weight": 2} for n in range(4)], "weighted.jsonl")))
        for data in (plain, weighted):
            data.setup("fit")
            data.train_dataloader()
        with pytest.raises(ValueError, match="the training data is not that of the checkpoint"):
            weighted.load_state_dict(plain.state_dict())

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lit_align.data.batches.collate import Collate
from lit_align.data.formats.base import ParsedRow, RawRow
from lit_align.data.formats.registry import FORMATS, read_row
from lit_align.data.prepared.prepare import Split, prepare_split
from lit_align.data.prepared.read_split import SplitReader
from lit_align.data.prepared.row_counts import BadRows
from lit_align.data.text.render import RenderOptions
from lit_align.data.text.tokenize import Tokenize
from lit_align.data.text.tokenizer import Encoder
from lit_align.data.text.truncate import Cut
from lit_align.errors import DataError
from tests.data.conftest import Write
from tests.data.examples import outcome, turns

ROWS = [
    {"prompt": "p", "completion": "good one", "label": True},
    {"prompt": "p", "completion": "bad", "label": False},
]


def read(row: dict[str, Any]) -> ParsedRow:
    return read_row(RawRow(row, "rows.jsonl:7"), FORMATS["unpaired"])


def split(tokenizer: PreTrainedTokenizerFast, path: Any, quality: str | None = None) -> Split:
    return prepare_split(
        SplitReader.of(str(path)), Tokenize(Encoder(tokenizer), Cut(64), RenderOptions(quality)), BadRows()
    )


class TestUnpaired:
    def test_the_label_says_which_side_it_is(self) -> None:
        good, bad = (read(row).pairs[0] for row in ROWS)
        assert (good.chosen, good.rejected) == ("good one", None)
        assert (bad.chosen, bad.rejected) == (None, "bad")

    def test_messages(self) -> None:
        pair = read({"prompt": turns("p"), "completion": turns("", "a")[1:], "label": 1}).pairs[0]
        assert list(pair.prompt) == turns("p")
        assert pair.chosen == ({"role": "assistant", "content": "a"},)

    @pytest.mark.parametrize(
        ("more", "reason"),
        [
            ({"label": None}, "label: found None; expected true or false"),
            ({"completion": " "}, "chosen: found only blanks"),
            ({"completion": None}, r"completion\[0\]: found null"),
            ({"prompt": ""}, "prompt: found empty"),
        ],
    )
    def test_a_bad_row_is_named(self, more: dict[str, Any], reason: str) -> None:
        with pytest.raises(DataError, match=f"rows.jsonl:7: {reason}"):
            read({**ROWS[0], **more})

    @pytest.mark.parametrize("quality", [None, "Please be good."])
    def test_the_side_that_is_missing_has_no_scored_token(
        self, plain: PreTrainedTokenizerFast, write: Write, quality: str | None
    ) -> None:
        found = split(plain, write(ROWS), quality)
        assert found.unpaired
        assert found.format == "unpaired"
        assert (found.store.lengths == 0).tolist() == [[False, True], [True, False]]
        assert found.store.stop_tokens == {plain.eos_token_id}
        batch = Collate(0)([(pair, 1.0) for pair in found.store])
        assert (batch.lengths == 0).tolist() == [[False, True], [True, False]]
        assert torch.equal(batch.attention_mask[0, 1], batch.input_ids[0, 1] != 0)

    def test_in_a_chat_template(self, chatml: PreTrainedTokenizerFast, write: Write) -> None:
        rows = [{**row, "prompt": turns("p")} for row in ROWS]
        found = split(chatml, write(rows))
        good = chatml.decode(found.store[0].chosen.ids)
        assert good.startswith("good one<|im_end|>")
        assert list(found.store[0].rejected.ids) == []


VALUES = st.none() | st.text(max_size=6) | st.integers(-1, 3) | st.lists(st.none() | st.text(max_size=3), max_size=3)
COLUMNS = ["prompt", "responses", "completion", "label", "scores", "choice", "chosen", "rejected", "tools", "weight"]
GOOD = {"prompt": "p", "responses": ["a", "b"], "completion": "c", "label": True, "chosen": "a", "rejected": "b"}


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(row=st.dictionaries(st.sampled_from(COLUMNS), VALUES), name=st.sampled_from(sorted(FORMATS)))
def test_whatever_the_row_there_are_pairs_or_a_data_error(row: dict[str, Any], name: str) -> None:
    found = outcome(lambda: read_row(RawRow({**GOOD, **row}, "f:1"), FORMATS[name]))
    if isinstance(found, DataError):
        assert found.where == "f:1"
    else:
        assert all(name == "prompts" or pair.chosen != pair.rejected for pair in found.pairs)

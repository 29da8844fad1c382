"""The recipes under configs/data read rows of the shape that their source has; the rows are made up here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from lit_align.data import PreferenceData
from lit_align.data.prepared.prepare import Split

FOLDER = Path(__file__).parents[2] / "configs" / "data"
ASKED = "\n\nHuman: Where does the river end?\n\nAssistant:"
POST = {"id": "t3_1", "post": "I saw a ship.", "title": "A ship", "subreddit": "sea", "site": None, "article": None}
NEWS = {**POST, "post": None, "article": "A ship was seen."}
SUMMARIES = [
    {"text": " Nothing.", "policy": "sup1", "note": None},
    {"text": " They saw a ship.", "policy": "ref", "note": "good"},
]


def told(*texts: str) -> list[dict[str, str]]:
    return [{"content": text, "role": ("user", "assistant")[place]} for place, text in enumerate(texts)]


ROWS: dict[str, list[dict[str, Any]]] = {
    "hh_rlhf": [{"chosen": ASKED + " In the sea.", "rejected": ASKED + " Nowhere."}],
    "full_hh_rlhf": [
        {"prompt": ASKED, "response": " In the sea.", "chosen": " In the sea.", "rejected": " Nowhere."},
    ],
    "ultrafeedback_binarized": [
        {
            "prompt": "Where does the river end?",
            "prompt_id": "a1",
            "chosen": told("Where does the river end?", "In the sea."),
            "rejected": told("Where does the river end?", "Nowhere."),
            "messages": told("Where does the river end?", "In the sea."),
            "score_chosen": 8.5,
            "score_rejected": 3.0,
        }
    ],
    "tldr_comparisons": [
        {
            "info": POST,
            "summaries": SUMMARIES,
            "choice": 1,
            "worker": "w",
            "batch": "batch3",
            "split": "train",
            "extra": {"confidence": None},
        }
    ],
    "shp": [
        {
            "post_id": "1",
            "domain": "askscience_train",
            "upvote_ratio": 0.9,
            "history": "Where does the river end?",
            "score_A": 2,
            "score_B": 9,
            "human_ref_A": "Nowhere.",
            "human_ref_B": "In the sea.",
            "labels": 0,
            "score_ratio": 4.5,
        },
        {
            "history": "Where does it begin?",
            "score_A": 5,
            "score_B": 1,
            "human_ref_A": "In the hills.",
            "human_ref_B": "Nowhere.",
            "labels": 1,
        },
    ],
}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, chatml: PreTrainedTokenizerFast, tmp_path: Path) -> Any:
    """Prepares the training rows of a recipe, and says what was asked of the hub."""
    chatml.save_pretrained(tmp_path)

    def run(name: str, rows: list[dict[str, Any]]) -> tuple[Split, list[Any]]:
        asked: list[Any] = []

        def load_dataset(*names: str, **settings: Any) -> Dataset:
            asked.append((*names, settings["revision"], settings["split"]))
            return Dataset.from_list(rows)

        monkeypatch.setattr("datasets.load_dataset", load_dataset)
        settings = yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8"))["data"]
        data = PreferenceData(tokenizer=str(tmp_path), **settings)
        data.setup("fit")
        return data.splits["train"], asked

    return run


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_short_says_what_a_row_is_and_reads_one(path: Path, read: Any) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) <= 20
    assert lines[0].startswith("# ")
    split, asked = read(path.stem, ROWS[path.stem])
    assert len(split.pairs) == len(ROWS[path.stem])
    assert len({call[-1] for call in asked}) == 2
    assert not split.dropped


@pytest.mark.parametrize(
    ("name", "prompt", "chosen", "rejected"),
    [
        ("hh_rlhf", ASKED, " In the sea.", " Nowhere."),
        ("full_hh_rlhf", ASKED, " In the sea.", " Nowhere."),
        (
            "tldr_comparisons",
            "SUBREDDIT: r/sea\nTITLE: A ship\nPOST: I saw a ship.\nTL;DR:",
            " They saw a ship.",
            " Nothing.",
        ),
        ("shp", "POST: Where does the river end?\n\nCOMMENT:", "In the sea.", "Nowhere."),
    ],
)
def test_the_text_of_the_first_pair(read: Any, name: str, prompt: str, chosen: str, rejected: str) -> None:
    split, _ = read(name, ROWS[name])
    pair = split.pairs[0]
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, chosen, rejected)


def test_conversations_and_their_scores(read: Any) -> None:
    split, _ = read("ultrafeedback_binarized", ROWS["ultrafeedback_binarized"])
    (pair,) = split.pairs
    assert list(pair.prompt) == told("Where does the river end?")
    assert pair.chosen == ({"content": "In the sea.", "role": "assistant"},)
    assert split.scores.tolist() == [[8.5, 3.0]]
    assert "messages" not in pair.extra


def test_labels_and_upvotes_of_comments(read: Any) -> None:
    split, _ = read("shp", ROWS["shp"])
    assert [pair.chosen for pair in split.pairs] == ["In the sea.", "In the hills."]
    assert split.scores.tolist() == [[9, 2], [5, 1]]


def test_comparisons_are_asked_for_by_configuration_and_revision(read: Any) -> None:
    _, asked = read("tldr_comparisons", ROWS["tldr_comparisons"])
    assert asked[0] == ("openai/summarize_from_feedback", "comparisons", "refs/convert/parquet", "train")


def test_news_have_no_post_and_are_dropped_and_counted(read: Any) -> None:
    (row,) = ROWS["tldr_comparisons"]
    posts = [{**row, "info": {**POST, "post": f"I saw {number} ships."}} for number in range(99)]
    split, _ = read("tldr_comparisons", [*posts, {**row, "info": NEWS}])
    assert len(split.pairs) == 99
    assert split.dropped == {"prompt: found null in 'info.post'": 1}

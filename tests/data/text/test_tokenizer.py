from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from lit_align.data.text.tokenizer import ControlTokenError, Encoder, Piece, load_tokenizer
from tests.data.conftest import train_tokenizer
from tests.data.tokenizers import published

CONTROL = ["</s>", "<pad>", "<|user|>"]


class TestLoad:
    def test_a_local_folder(self, saved: str, plain: PreTrainedTokenizerFast) -> None:
        assert load_tokenizer(saved).get_vocab() == plain.get_vocab()

    @pytest.mark.parametrize("name", ["./out/model", "out", "out/a/b", "/nowhere/model", ""])
    def test_a_missing_folder_is_said_at_once(
        self, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"tokenizer folder not found|tokenizer\.json is missing"):
            load_tokenizer(name)

    def test_a_name_that_begins_with_a_folder_here_is_local(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "out").mkdir()
        with pytest.raises(FileNotFoundError, match="not found: out/model"):
            load_tokenizer("out/model")

    def test_a_folder_without_a_tokenizer(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing in "):
            load_tokenizer(str(tmp_path))

    def test_no_end_of_sequence(self, tmp_path: Path) -> None:
        PreTrainedTokenizerFast(tokenizer_object=train_tokenizer([])).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="tokenizer has no EOS; set eos_token"):
            load_tokenizer(str(tmp_path))
        with pytest.raises(ValueError, match="tokenizer has no EOS; set eos_token"):
            Encoder(PreTrainedTokenizerFast(tokenizer_object=train_tokenizer([])))


class TestStart:
    def test_it_is_found_by_asking_the_tokenizer(
        self, plain: PreTrainedTokenizerFast, bos: PreTrainedTokenizerFast, llama3: PreTrainedTokenizerFast
    ) -> None:
        assert Encoder(plain).start == []
        assert Encoder(bos).start == [bos.bos_token_id]
        assert Encoder(llama3).start == [llama3.bos_token_id]

    def test_padding_takes_eos_where_there_is_no_pad_token(
        self, plain: PreTrainedTokenizerFast, bos: PreTrainedTokenizerFast
    ) -> None:
        assert Encoder(plain).pad == plain.pad_token_id
        assert Encoder(bos).pad == bos.eos_token_id


class TestSpelledEnds:
    @pytest.mark.parametrize("end", ["</s>", "</s>\n", "</s> </s>\t\n"])
    def test_eos_at_the_end_goes_with_the_blanks_around_it(self, plain: PreTrainedTokenizerFast, end: str) -> None:
        assert Encoder(plain).without_end("a </s> b \n" + end) == "a </s> b \n"

    def test_blanks_at_the_end_stay_where_there_is_no_eos(self, plain: PreTrainedTokenizerFast) -> None:
        assert Encoder(plain).without_end("a \n") == "a \n"

    def test_many_of_them_take_no_more_than_linear_time(self, plain: PreTrainedTokenizerFast) -> None:
        assert Encoder(plain).without_end("a" + "</s> " * 200_000) == "a"

    def test_bos_goes_only_where_the_tokenizer_adds_it(
        self, plain: PreTrainedTokenizerFast, bos: PreTrainedTokenizerFast
    ) -> None:
        assert Encoder(bos).without_start("<s><s>a<s>") == "a<s>"
        assert Encoder(plain).without_start("<s>a") == "<s>a"


with_control = st.lists(st.text(max_size=6) | st.sampled_from(CONTROL), max_size=6).map("".join)


class TestEncoder:
    @settings(deadline=None)
    @given(text=with_control)
    @pytest.mark.security(12)
    def test_data_stays_text_whatever_it_spells(self, plain: PreTrainedTokenizerFast, text: str) -> None:
        encoder = Encoder(plain)
        (ids,) = encoder([(Piece(text),)])
        assert encoder.control_ids.isdisjoint(ids)
        assert plain.decode(ids, clean_up_tokenization_spaces=False) == text

    def test_a_template_means_its_control_tokens(self, plain: PreTrainedTokenizerFast) -> None:
        control, text = Encoder(plain)([(Piece("</s>", template=True),), (Piece("</s>"),)])
        assert control == [plain.eos_token_id]
        assert plain.eos_token_id not in text

    def test_pieces_follow_one_another(self, plain: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(plain)
        a, b, both, nothing = encoder([(Piece("ship"),), (Piece(" left"),), (Piece("ship"), Piece(" left")), ()])
        assert both == a + b
        assert nothing == []

    def test_the_tokenizer_is_left_as_it_was(self, plain: PreTrainedTokenizerFast) -> None:
        before = plain("a</s>").input_ids
        Encoder(plain)([(Piece("a</s>"),)])
        assert plain("a</s>").input_ids == before
        assert before[-1] == plain.eos_token_id

    def test_a_vocabulary_with_control_tokens_among_its_words_is_split_inside_of_them(self) -> None:
        """Unigram vocabularies have them with the highest score of all, whatever ``split_special_tokens`` says."""
        t5 = published("t5")
        assert t5.eos_token_id in t5("ship </s> left", add_special_tokens=False, split_special_tokens=True).input_ids
        (ids,) = Encoder(t5)([(Piece("ship </s> left"),)])
        assert t5.decode(ids) == "ship </s> left"

    def test_a_tokenizer_that_cannot_tell_them_apart_is_refused(self) -> None:
        words = Tokenizer(models.WordLevel({"a": 0, "#": 1, "?": 2}, unk_token="?"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="#", unk_token="?")
        with pytest.raises(ControlTokenError, match="cannot keep text from control tokens: '#'"):
            Encoder(tokenizer)([(Piece("#"),)])

    def test_an_end_of_sequence_that_is_the_unknown_token_too_is_a_control_token(self) -> None:
        """GPT-2 and its like have one token for all roles."""
        encoder = Encoder(published("opt"))
        assert encoder.end == encoder.tokenizer.unk_token_id
        assert encoder.end in encoder.control_ids
        assert encoder.control_text.search("a </s> b")

    def test_an_unknown_token_that_data_spells_is_text(self) -> None:
        encoder = Encoder(published("llama_2"))
        assert encoder.tokenizer.unk_token_id not in encoder.control_ids
        assert encoder.control_text.search("a <unk> b")


class TestTemplateFile:
    def test_it_takes_the_place_of_the_tokenizers_own(self, saved: str, tmp_path: Path) -> None:
        path = tmp_path / "mine.jinja"
        path.write_text("{% for m in messages %}{{ m.content }}{% endfor %}", "utf-8")
        assert load_tokenizer(saved).chat_template is None
        assert Encoder(load_tokenizer(saved, chat_template=str(path))).template == path.read_text("utf-8")

    def test_it_may_mark_the_assistants_turns_as_others_do(self, saved: str, tmp_path: Path) -> None:
        path = tmp_path / "mine.jinja"
        path.write_text(
            "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", "utf-8"
        )
        tokenizer = load_tokenizer(saved, chat_template=str(path))
        assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "a"

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"ok\n{% for m in messages %}", r"mine\.jinja:2: not a Jinja template"),
            (b"\xff", r"mine\.jinja: not UTF-8 at byte 0"),
            (b"", r"never names them"),
        ],
    )
    def test_a_file_that_is_none(self, saved: str, tmp_path: Path, content: bytes, message: str) -> None:
        path = tmp_path / "mine.jinja"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_tokenizer(saved, chat_template=str(path))

    def test_a_file_that_is_not_there(self, saved: str) -> None:
        with pytest.raises(FileNotFoundError, match=r"data\.chat_template not found: \./no\.jinja"):
            load_tokenizer(saved, chat_template="./no.jinja")

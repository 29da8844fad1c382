"""Preference data: from rows in files to batches of tensors.

``read_rows`` → ``read_row`` → ``Gather`` → ``Tokenize`` → ``PairStore`` → ``BucketedBatches`` → ``Collate``, put
together by ``PreferenceData``.
"""

from lit_align.data.collate import Collate
from lit_align.data.datamodule import PreferenceData
from lit_align.data.errors import DataError
from lit_align.data.format import Format, Reading
from lit_align.data.formats import FORMATS, read_row
from lit_align.data.gather import Gather
from lit_align.data.lengths import LengthReport, length_report
from lit_align.data.loader import ResumableLoader
from lit_align.data.mixture import Source
from lit_align.data.prepare import Split, prepare
from lit_align.data.prompts import QUALITY_PROMPT
from lit_align.data.sample_prompts import SamplePrompt
from lit_align.data.sampler import BucketedBatches, SequentialBatches, Share
from lit_align.data.sources import read_rows
from lit_align.data.store import PairStore
from lit_align.data.tally import BadRows
from lit_align.data.tokenize import Tokenize
from lit_align.data.tokenizer import Encoder, load_tokenizer
from lit_align.data.truncate import Cut, Drop, Truncation

__all__ = [
    "FORMATS",
    "Gather",
    "Source",
    "QUALITY_PROMPT",
    "BadRows",
    "BucketedBatches",
    "Collate",
    "Cut",
    "DataError",
    "Drop",
    "Encoder",
    "Format",
    "LengthReport",
    "PairStore",
    "PreferenceData",
    "Reading",
    "ResumableLoader",
    "SamplePrompt",
    "SequentialBatches",
    "Share",
    "Split",
    "Tokenize",
    "Truncation",
    "length_report",
    "load_tokenizer",
    "prepare",
    "read_row",
    "read_rows",
]

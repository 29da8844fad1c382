"""Preference data: from rows in files to batches of tensors.

``SplitReader`` → ``Tokenize`` → ``PairStore`` → ``PairDataset`` → ``BucketedBatches`` → ``Collate``, combined by
``PreferenceData``.
"""

from lit_align.data.batches.collate import Collate
from lit_align.data.batches.dataset import PairDataset, SamplePrompt
from lit_align.data.batches.loader import ResumableLoader
from lit_align.data.batches.sampler import BucketedBatches, SequentialBatches, Share
from lit_align.data.datamodule import PreferenceData
from lit_align.data.formats.base import Format, ParsedRow
from lit_align.data.formats.registry import FORMATS, read_row
from lit_align.data.prepared.mixture import Source
from lit_align.data.prepared.prepare import Split, prepare_split
from lit_align.data.prepared.read_split import SplitReader
from lit_align.data.prepared.row_counts import BadRows
from lit_align.data.prepared.store import PairStore
from lit_align.data.report.lengths import LengthReport, length_report
from lit_align.data.sources.base import read_source
from lit_align.data.text.render import QUALITY_PROMPT, RenderOptions
from lit_align.data.text.tokenize import Tokenize
from lit_align.data.text.tokenizer import Encoder, load_tokenizer
from lit_align.data.text.truncate import Cut, Drop, Truncation
from lit_align.errors import DataError

__all__ = [
    "FORMATS",
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
    "PairDataset",
    "PairStore",
    "ParsedRow",
    "PreferenceData",
    "RenderOptions",
    "ResumableLoader",
    "SamplePrompt",
    "SequentialBatches",
    "Share",
    "Source",
    "Split",
    "SplitReader",
    "Tokenize",
    "Truncation",
    "length_report",
    "load_tokenizer",
    "prepare_split",
    "read_row",
    "read_source",
]

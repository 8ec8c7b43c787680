"""Documents to packed batches, in one global order that resumes to the token."""

from omni_data.cursor import Cursor, Position, cursor_from_json, cursor_to_json, merge_cursors
from omni_data.document import Document, Documents, Source
from omni_data.fingerprint import fingerprint
from omni_data.fit import fit_rows
from omni_data.make import encode_document
from omni_data.mix import Part, parse_weight
from omni_data.order import permute
from omni_data.pack import IGNORE, Batch, document_bounds, pack_batch, shard_sequence, unpack_batch
from omni_data.prefetch import prefetch
from omni_data.read import Streamed
from omni_data.sample import Counts, Sample, sample_of
from omni_data.source import concatenate, open_source
from omni_data.stream import Stream, stream_batches
from omni_data.synth import builtin_corpus, synthetic_documents
from omni_data.tokens import TextTokenizer, byte_tokenizer, read_tokenizer
from omni_data.window import Cost, Packing

__all__ = [
    "IGNORE",
    "Batch",
    "sample_of",
    "parse_weight",
    "encode_document",
    "Streamed",
    "Sample",
    "Position",
    "Part",
    "Packing",
    "Counts",
    "Cost",
    "Cursor",
    "Document",
    "Documents",
    "Source",
    "Stream",
    "TextTokenizer",
    "builtin_corpus",
    "byte_tokenizer",
    "concatenate",
    "cursor_from_json",
    "cursor_to_json",
    "document_bounds",
    "fingerprint",
    "fit_rows",
    "merge_cursors",
    "open_source",
    "pack_batch",
    "permute",
    "prefetch",
    "read_tokenizer",
    "shard_sequence",
    "stream_batches",
    "synthetic_documents",
    "unpack_batch",
]

"""Documents to packed batches, in one global order that resumes to the token."""

from omni_data.attached import Attached, attached_of
from omni_data.audio import read_audio
from omni_data.blob import Blob
from omni_data.chat import ChatTokenizer, Learn, encode_chat, render_chat
from omni_data.combine import beginning, concatenate, mapped
from omni_data.conversations import Conversation, conversation_of
from omni_data.cursor import Cursor, Position, cursor_from_json, cursor_to_json, merge_cursors, with_sources
from omni_data.document import Document, Documents, Record, Source, place_of
from omni_data.fingerprint import fingerprint
from omni_data.fit import fit_rows
from omni_data.images import read_image
from omni_data.make import Encode, encode_document
from omni_data.mix import Part, parse_weight
from omni_data.order import permute
from omni_data.pack import IGNORE, Batch, document_bounds, pack_batch, shard_sequence, unpack_batch
from omni_data.pictures import COLOURS, DRAWINGS, PLACES, SHAPES, builtin_drawings, draw_shape, synthetic_shapes
from omni_data.preferences import Pair, pair_of, render_pair
from omni_data.prefetch import prefetch
from omni_data.read import Streamed, Unread
from omni_data.sample import Counts, Sample, sample_of
from omni_data.source import open_records, open_source
from omni_data.stream import NoRows, Stream, stream_batches
from omni_data.streamed import stream_records, stream_source
from omni_data.synth import builtin_chats, builtin_corpus, builtin_pictures, synthetic_documents
from omni_data.tokens import TextTokenizer, byte_tokenizer, read_tokenizer
from omni_data.video import pick_frames, read_video
from omni_data.window import Cost, Packing

__all__ = [
    "Attached",
    "Batch",
    "Blob",
    "COLOURS",
    "DRAWINGS",
    "ChatTokenizer",
    "Conversation",
    "Cost",
    "Counts",
    "Cursor",
    "Document",
    "Documents",
    "Encode",
    "IGNORE",
    "Learn",
    "NoRows",
    "PLACES",
    "Packing",
    "Pair",
    "Part",
    "Position",
    "Record",
    "SHAPES",
    "Sample",
    "Source",
    "Stream",
    "Streamed",
    "TextTokenizer",
    "Unread",
    "attached_of",
    "beginning",
    "builtin_chats",
    "builtin_corpus",
    "builtin_drawings",
    "builtin_pictures",
    "byte_tokenizer",
    "concatenate",
    "conversation_of",
    "cursor_from_json",
    "cursor_to_json",
    "document_bounds",
    "draw_shape",
    "encode_chat",
    "encode_document",
    "fingerprint",
    "fit_rows",
    "mapped",
    "merge_cursors",
    "open_records",
    "open_source",
    "pack_batch",
    "pair_of",
    "parse_weight",
    "permute",
    "pick_frames",
    "place_of",
    "prefetch",
    "read_audio",
    "read_image",
    "read_tokenizer",
    "read_video",
    "render_chat",
    "render_pair",
    "sample_of",
    "shard_sequence",
    "stream_batches",
    "stream_records",
    "stream_source",
    "synthetic_documents",
    "synthetic_shapes",
    "unpack_batch",
    "with_sources",
]

"""Text: sources of documents, tokenizers, streams of tokens."""

from __future__ import annotations

from jaxlab.data.text.documents import DocumentStream as DocumentStream
from jaxlab.data.text.documents import join_states as join_states
from jaxlab.data.text.documents import token_batch_shapes as token_batch_shapes
from jaxlab.data.text.encoding import InvalidUtf8 as InvalidUtf8
from jaxlab.data.text.encoding import check_utf8 as check_utf8
from jaxlab.data.text.encoding import find_invalid_utf8 as find_invalid_utf8
from jaxlab.data.text.framing import count_words as count_words
from jaxlab.data.text.incremental_decoding import IncrementalDecoder as IncrementalDecoder
from jaxlab.data.text.incremental_decoding import decode_incrementally as decode_incrementally
from jaxlab.data.text.repositories import Repositories as Repositories
from jaxlab.data.text.sentence_piece import SentencePiece as SentencePiece
from jaxlab.data.text.source_specs import open_source as open_source
from jaxlab.data.text.sources import Documents as Documents
from jaxlab.data.text.sources import Source as Source
from jaxlab.data.text.sources import StandardLibrary as StandardLibrary
from jaxlab.data.text.sources import Subset as Subset
from jaxlab.data.text.sources import TextFiles as TextFiles
from jaxlab.data.text.sources import source_fingerprint as source_fingerprint
from jaxlab.data.text.sources import split as split
from jaxlab.data.text.tex_articles import TexArticles as TexArticles
from jaxlab.data.text.tfds_text import TfdsText as TfdsText
from jaxlab.data.text.tokenizers import Bytes as Bytes
from jaxlab.data.text.tokenizers import Tokenizer as Tokenizer
from jaxlab.data.text.tokenizers import open_tokenizer as open_tokenizer
from jaxlab.data.text.walk import Walk as Walk
from jaxlab.data.text.walk import walk as walk

__all__ = [
    "Bytes",
    "DocumentStream",
    "Documents",
    "IncrementalDecoder",
    "InvalidUtf8",
    "Repositories",
    "SentencePiece",
    "Source",
    "StandardLibrary",
    "Subset",
    "TexArticles",
    "TextFiles",
    "TfdsText",
    "Tokenizer",
    "Walk",
    "check_utf8",
    "count_words",
    "decode_incrementally",
    "find_invalid_utf8",
    "join_states",
    "open_source",
    "open_tokenizer",
    "source_fingerprint",
    "split",
    "token_batch_shapes",
    "walk",
]

"""Data: text, images and synthetic tasks, as sources and as streams of batches."""

from __future__ import annotations

from jaxlab.data.array_cache import cached_arrays as cached_arrays
from jaxlab.data.batches import NumpyBatch as NumpyBatch
from jaxlab.data.epoch_order import epoch_order as epoch_order
from jaxlab.data.images import ImageBatches as ImageBatches
from jaxlab.data.images import ImageFolder as ImageFolder
from jaxlab.data.images import ImageSet as ImageSet
from jaxlab.data.images import ImageStream as ImageStream
from jaxlab.data.images import TfdsImages as TfdsImages
from jaxlab.data.images import augment as augment
from jaxlab.data.images import augmented as augmented
from jaxlab.data.images import channel_statistics as channel_statistics
from jaxlab.data.images import corrupted as corrupted
from jaxlab.data.images import corrupted_sets as corrupted_sets
from jaxlab.data.images import corruptions as corruptions
from jaxlab.data.images import digits as digits
from jaxlab.data.images import image_batch_shapes as image_batch_shapes
from jaxlab.data.images import image_batches as image_batches
from jaxlab.data.images import images_fingerprint as images_fingerprint
from jaxlab.data.images import open_images as open_images
from jaxlab.data.images import unit_images as unit_images
from jaxlab.data.prefetch import Prefetch as Prefetch
from jaxlab.data.stream import State as State
from jaxlab.data.stream import Stream as Stream
from jaxlab.data.synthetic import RecallStream as RecallStream
from jaxlab.data.synthetic import RecallTask as RecallTask
from jaxlab.data.text import Bytes as Bytes
from jaxlab.data.text import Documents as Documents
from jaxlab.data.text import DocumentStream as DocumentStream
from jaxlab.data.text import IncrementalDecoder as IncrementalDecoder
from jaxlab.data.text import InvalidUtf8 as InvalidUtf8
from jaxlab.data.text import Repositories as Repositories
from jaxlab.data.text import SentencePiece as SentencePiece
from jaxlab.data.text import Source as Source
from jaxlab.data.text import StandardLibrary as StandardLibrary
from jaxlab.data.text import Subset as Subset
from jaxlab.data.text import TexArticles as TexArticles
from jaxlab.data.text import TextFiles as TextFiles
from jaxlab.data.text import TfdsText as TfdsText
from jaxlab.data.text import Tokenizer as Tokenizer
from jaxlab.data.text import Walk as Walk
from jaxlab.data.text import check_utf8 as check_utf8
from jaxlab.data.text import count_words as count_words
from jaxlab.data.text import decode_incrementally as decode_incrementally
from jaxlab.data.text import find_invalid_utf8 as find_invalid_utf8
from jaxlab.data.text import join_states as join_states
from jaxlab.data.text import open_source as open_source
from jaxlab.data.text import open_tokenizer as open_tokenizer
from jaxlab.data.text import source_fingerprint as source_fingerprint
from jaxlab.data.text import split as split
from jaxlab.data.text import token_batch_shapes as token_batch_shapes
from jaxlab.data.text import walk as walk

__all__ = [
    "Bytes",
    "DocumentStream",
    "Documents",
    "ImageBatches",
    "ImageFolder",
    "ImageSet",
    "ImageStream",
    "IncrementalDecoder",
    "InvalidUtf8",
    "NumpyBatch",
    "Prefetch",
    "RecallStream",
    "RecallTask",
    "Repositories",
    "SentencePiece",
    "Source",
    "StandardLibrary",
    "State",
    "Stream",
    "Subset",
    "TexArticles",
    "TextFiles",
    "TfdsImages",
    "TfdsText",
    "Tokenizer",
    "Walk",
    "augment",
    "augmented",
    "cached_arrays",
    "channel_statistics",
    "check_utf8",
    "corrupted",
    "corrupted_sets",
    "corruptions",
    "count_words",
    "decode_incrementally",
    "digits",
    "epoch_order",
    "find_invalid_utf8",
    "image_batch_shapes",
    "image_batches",
    "images_fingerprint",
    "join_states",
    "open_images",
    "open_source",
    "open_tokenizer",
    "source_fingerprint",
    "split",
    "token_batch_shapes",
    "unit_images",
    "walk",
]

"""Data: sources of documents and of images, tokenizers, streams, augmentation, synthetic tasks."""

from __future__ import annotations

from jaxlab.data.images import augment as augment
from jaxlab.data.images import corruptions as corruptions
from jaxlab.data.images.augment import augmented as augmented
from jaxlab.data.images.corrupted import corrupted as corrupted
from jaxlab.data.images.corrupted import corrupted_sets as corrupted_sets
from jaxlab.data.images.corrupted import images_fingerprint as images_fingerprint
from jaxlab.data.images.digits import digits as digits
from jaxlab.data.images.image_folder import ImageFolder as ImageFolder
from jaxlab.data.images.image_set import ImageSet as ImageSet
from jaxlab.data.images.image_set import channel_statistics as channel_statistics
from jaxlab.data.images.image_stream import ImageBatches as ImageBatches
from jaxlab.data.images.image_stream import ImageStream as ImageStream
from jaxlab.data.images.image_stream import image_batches as image_batches
from jaxlab.data.images.tfds_images import TfdsImages as TfdsImages
from jaxlab.data.images.unit_images import unit_images as unit_images
from jaxlab.data.kept_arrays import kept_arrays as kept_arrays
from jaxlab.data.order import epoch_order as epoch_order
from jaxlab.data.pieces import PieceDecoder as PieceDecoder
from jaxlab.data.pieces import decode_pieces as decode_pieces
from jaxlab.data.prefetch import Prefetch as Prefetch
from jaxlab.data.prefetch import Stream as Stream
from jaxlab.data.source_specs import open_images as open_images
from jaxlab.data.source_specs import open_source as open_source
from jaxlab.data.state import State as State
from jaxlab.data.synthetic.recall import RecallStream as RecallStream
from jaxlab.data.synthetic.recall import RecallTask as RecallTask
from jaxlab.data.text.documents import DocumentStream as DocumentStream
from jaxlab.data.text.documents import join_states as join_states
from jaxlab.data.text.encoding import InvalidUtf8 as InvalidUtf8
from jaxlab.data.text.encoding import check_utf8 as check_utf8
from jaxlab.data.text.encoding import find_invalid_utf8 as find_invalid_utf8
from jaxlab.data.text.framing import NumpyBatch as NumpyBatch
from jaxlab.data.text.framing import count_words as count_words
from jaxlab.data.text.repositories import Repositories as Repositories
from jaxlab.data.text.sentence_piece import SentencePiece as SentencePiece
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
    "NumpyBatch",
    "ImageBatches",
    "ImageFolder",
    "ImageSet",
    "ImageStream",
    "InvalidUtf8",
    "PieceDecoder",
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
    "channel_statistics",
    "check_utf8",
    "corrupted",
    "corrupted_sets",
    "corruptions",
    "count_words",
    "decode_pieces",
    "digits",
    "epoch_order",
    "find_invalid_utf8",
    "image_batches",
    "images_fingerprint",
    "join_states",
    "kept_arrays",
    "open_images",
    "open_source",
    "open_tokenizer",
    "source_fingerprint",
    "split",
    "unit_images",
    "walk",
]

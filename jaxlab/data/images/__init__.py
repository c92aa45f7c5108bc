"""Images: labelled sets, streams of batches, augmentation, corruptions."""

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
from jaxlab.data.images.image_specs import open_images as open_images
from jaxlab.data.images.image_stream import ImageBatches as ImageBatches
from jaxlab.data.images.image_stream import ImageStream as ImageStream
from jaxlab.data.images.image_stream import image_batch_shapes as image_batch_shapes
from jaxlab.data.images.image_stream import image_batches as image_batches
from jaxlab.data.images.tfds_images import TfdsImages as TfdsImages
from jaxlab.data.images.unit_images import unit_images as unit_images

__all__ = [
    "ImageBatches",
    "ImageFolder",
    "ImageSet",
    "ImageStream",
    "TfdsImages",
    "augment",
    "augmented",
    "channel_statistics",
    "corrupted",
    "corrupted_sets",
    "corruptions",
    "digits",
    "image_batch_shapes",
    "image_batches",
    "images_fingerprint",
    "open_images",
    "unit_images",
]

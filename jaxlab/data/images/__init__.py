"""Images: labelled sets, streams, augmentation, corruptions."""

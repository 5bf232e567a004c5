"""Random augmentation of training images: vectorised, on the device, each kind with a random stream of its own."""

from iakd.data.augmentation.augmenter import Augmenter, check_padding, view_images

__all__ = ["Augmenter", "check_padding", "view_images"]

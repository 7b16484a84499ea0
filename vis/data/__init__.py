"""Load datasets of named, optionally labelled images, and preprocess them for a network.

A dataset is a sequence of images. The model sets their size and preprocessing (`vis.data.preprocess`), unless the
config overrides them.
"""

from vis.data.datasets import Dataset, backgrounds, cifar10, digits, files, folder, imagenet, imagenette, mnist, samples
from vis.data.gaze import osie
from vis.data.images import read_image, to_pixels
from vis.data.preprocess import PREPROCESSING, Preprocess, preprocessing
from vis.data.stacked import stack_mix, stack_photographs, stacked_cifar10, stacked_digits, stacked_mnist

__all__ = [
    "PREPROCESSING",
    "Dataset",
    "Preprocess",
    "backgrounds",
    "cifar10",
    "digits",
    "files",
    "folder",
    "imagenet",
    "imagenette",
    "mnist",
    "osie",
    "preprocessing",
    "read_image",
    "samples",
    "stack_mix",
    "stack_photographs",
    "stacked_cifar10",
    "stacked_digits",
    "stacked_mnist",
    "to_pixels",
]

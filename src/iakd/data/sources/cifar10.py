"""CIFAR-10: 60,000 colour images of 32×32 pixels in 10 classes (Krizhevsky 2009)."""

from iakd.data.published import Published, locate
from iakd.data.raw import Raw
from iakd.data.sources import cifar
from iakd.params import Dataset

PUBLISHED = Published(
    "https://www.cs.toronto.edu/~kriz", {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}
)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FORM = cifar.Cifar(
    train=tuple(f"data_batch_{batch}" for batch in range(1, 6)),
    test="test_batch",
    pickled_meta="batches.meta",
    pickled_names="label_names",
    pickled_labels="labels",
    text_names="batches.meta.txt",
    label_bytes=1,
    label_at=0,
    column=None,
    classes=CLASSES,
)


def read(settings: Dataset) -> Raw:
    """All images, from `dataset.path` or downloaded. Raises UserError for missing or damaged files."""
    return cifar.read(locate(settings, PUBLISHED), FORM, settings.only_test)

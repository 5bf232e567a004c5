"""CIFAR-100: 60,000 colour images of 32×32 pixels in 100 classes of 20 kinds (Krizhevsky 2009)."""

import dataclasses

from iakd.data.published import Published, locate
from iakd.data.raw import Raw
from iakd.data.sources import cifar
from iakd.params import Dataset

PUBLISHED = Published(
    "https://www.cs.toronto.edu/~kriz", {"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"}
)
FINE_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
COARSE_CLASSES = """
    aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
    household_furniture insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes
    large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles small_mammals trees
    vehicles_1 vehicles_2
"""
FINE = cifar.Cifar(
    train=("train",),
    test="test",
    pickled_meta="meta",
    pickled_names="fine_label_names",
    pickled_labels="fine_labels",
    text_names="fine_label_names.txt",
    label_bytes=2,  # coarse, fine
    label_at=1,
    column="fine_label",
    classes=tuple(FINE_CLASSES.split()),
)
COARSE = dataclasses.replace(
    FINE,
    pickled_names="coarse_label_names",
    pickled_labels="coarse_labels",
    text_names="coarse_label_names.txt",
    label_at=0,
    column="coarse_label",
    classes=tuple(COARSE_CLASSES.split()),
)


def read(settings: Dataset) -> Raw:
    """All images, from `dataset.path` or downloaded. Raises UserError for missing or damaged files."""
    form = FINE if settings.labels == "fine" else COARSE
    return cifar.read(locate(settings, PUBLISHED), form, settings.only_test)

"""tiered-ImageNet: 608 classes of ImageNet in 34 superclasses, which are split as wholes (Ren et al. 2018)."""

from __future__ import annotations

from fsl_cli.datasets.layout_folders import find_folders
from fsl_cli.datasets.layout_hdf5 import find_hdf5
from fsl_cli.datasets.layout_pickles import find_encoded
from fsl_cli.datasets.published import Published


class TieredImageNet(Published):
    """351, 97 and 160 classes, 779,165 pictures. See `Published` for the arguments, and `layouts` for what is read.

    It is not downloaded: its pictures are those of ImageNet's training set, whose terms each user has to accept; the folders of
    that set are read as they are. Its pack takes 16.5 GB at 84 pixels. Pictures that are not square are stretched, as the
    authors did.
    """

    name = "tiered_imagenet"
    folders = ("tieredimagenet",)
    finders = (find_encoded, find_hdf5, find_folders)
    layouts = (
        "{train,val,test}_images_png.pkl with _labels.pkl (the authors, learn2learn, MetaOptNet); "
        "{train,val,test}_data.hdf5 with _labels.json (torchmeta); "
        "or a folder for each class (n01530575, ...), as in ImageNet's train, or in train, val and test"
    )
    total = 779_165

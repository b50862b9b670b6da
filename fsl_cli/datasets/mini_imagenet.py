"""mini-ImageNet: 100 classes of ImageNet with 600 pictures each (Vinyals et al. 2016), split by Ravi and Larochelle (2017)."""

from __future__ import annotations

from fsl_cli.datasets.layout_folders import find_csv, find_folders
from fsl_cli.datasets.layout_hdf5 import find_hdf5
from fsl_cli.datasets.layout_pickles import find_class_dicts, find_labelled
from fsl_cli.datasets.published import Published


class MiniImageNet(Published):
    """64, 16 and 20 classes, 60,000 pictures. See `Published` for the arguments, and `layouts` for what is read.

    It is not downloaded: its pictures are ImageNet's, whose terms each user has to accept. Pictures that are not square are
    stretched, as those of 84 x 84 pixels in use were.
    """

    name = "mini_imagenet"
    folders = ("miniimagenet", "miniimagenetnumpy")
    finders = (find_class_dicts, find_labelled, find_hdf5, find_csv, find_folders)
    layouts = (
        "mini-imagenet-cache-{train,validation,test}.pkl (learn2learn); miniImageNet_category_split_*.pickle (MetaOptNet); "
        "{train,val,test}_data.hdf5 with _labels.json (torchmeta); {train,val,test}.csv with images/ (Ravi and Larochelle); "
        "or a folder for each class, perhaps in train, val and test"
    )
    total = 60_000

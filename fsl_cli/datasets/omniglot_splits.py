"""Which characters of Omniglot are for training, validation and test."""

from __future__ import annotations

import re
from importlib.resources import files as package_files
from typing import Literal

OmniglotSplit = Literal["vinyals", "lake"]


def class_split(name: OmniglotSplit = "vinyals", archive: str | None = None) -> dict[str, str]:
    """The split of every character, ``{"Greek/character01": "train", ...}``.

    Args:
        name: ``vinyals``: that of Vinyals et al. (2016). ``lake``: that of Lake et al. (2015), whose 20 alphabets of
            ``images_evaluation`` are all for tests and whose 30 of ``images_background`` for training; of these, the five that
            Vinyals et al. validate with are for validation here too.
        archive: only the characters of this archive; None: all 1,623.
    """
    return {
        character: "test" if name == "lake" and found == "images_evaluation" else split
        for found, character, split in _vinyals()
        if archive in (None, found)
    }


def vinyals_split(archive: str | None = None) -> dict[str, str]:
    """The split of Vinyals et al. (2016): 1,028 train, 172 val and 423 test characters; see `class_split`."""
    return class_split("vinyals", archive)


def alphabets(archive: str) -> set[str]:
    """The alphabets of one archive."""
    return {character.split("/")[0] for character in vinyals_split(archive)}


def _vinyals() -> list[tuple[str, str, str]]:
    """Archive, character and split."""
    text = (package_files("fsl_cli.datasets") / "omniglot_vinyals.txt").read_text(encoding="utf-8")
    rows = []
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        archive, alphabet, runs = line.split(" ", 2)
        expanded = [name for count, name in re.findall(r"(\d+)(\w+)", runs) for _ in range(int(count))]
        rows += [(archive, f"{alphabet}/character{i:02d}", name) for i, name in enumerate(expanded, start=1)]
    return rows

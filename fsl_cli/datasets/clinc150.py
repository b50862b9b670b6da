"""CLINC150 (Larson et al. 2019): 150 intents of 10 domains, 150 texts each, for few-shot learning of intents.

The released split divides the texts of every intent; here they are taken together, and intents, or whole domains, are
divided. The texts that are out of scope are left out. Licence: CC BY 3.0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files as package_files
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge

from fsl_cli.datasets.class_splits import split_by_fractions
from fsl_cli.datasets.labelled_rows import Fractions, Rows
from fsl_cli.datasets.pack import ProgressFactory
from fsl_cli.datasets.status import Status
from fsl_cli.datasets.text import Text
from fsl_cli.errors import FslError

FILES = ("clinc150.zip", "clinc150/data_full.json", "oos-eval/data/data_full.json", "data_full.json")
SOURCE = "data/data_full.json of github.com/clinc/oos-eval"


class Clinc150(Text):
    """CLINC150, from ``data_dir/text``, ``data_dir/clinc150`` or ``data_dir`` itself.

    Args:
        data_dir: folder of existing data.
        cache_dir: cache folder of the vectors.
        file: the released JSON file, or a zip file with it, if it is elsewhere.
        held_out: ``intents``: drawn one by one, so that a test has intents of known domains; ``domains``: all intents of a
            domain are in one split.
        encoder: see `Text`.
        standardize: see `Text`.
        max_words: see `Text`.
        min_texts: see `Text`.
        max_tokens: see `Text`.
        fractions: of the intents or domains, for train, val and test.
        split_seed: of the draw of intents or domains; not of the run.
        progress: reports encoding; None: no progress.
        warn: reports texts that are in two splits; None: no warnings.
    """

    name = "clinc150"

    def __init__(
        self,
        data_dir: Path,
        cache_dir: Path,
        *,
        file: Path | None = None,
        held_out: Literal["intents", "domains"] = "intents",
        encoder: str = "wordllama",
        standardize: bool = False,
        max_words: Annotated[int, Ge(1)] | None = None,
        min_texts: Annotated[int, Ge(1)] | None = None,
        max_tokens: Annotated[int, Ge(1)] = 64,
        fractions: Fractions = [0.6, 0.2, 0.2],  # noqa: B006
        split_seed: Annotated[int, Ge(0)] = 0,
        progress: ProgressFactory | None = None,
        warn: Callable[[str], object] | None = None,
    ) -> None:
        super().__init__(
            file,
            cache_dir,
            encoder=encoder,
            standardize=standardize,
            max_words=max_words,
            min_texts=min_texts,
            max_tokens=max_tokens,
            split_by="fractions",
            fractions=fractions,
            split_seed=split_seed,
            progress=progress,
            warn=warn,
        )
        self.data_dir, self.held_out = Path(data_dir), held_out

    @property
    def file(self) -> Path:
        """The file that was given, or the first that is found.

        Raises:
            FslError: there is none.
        """
        found = self.given_file or self._found()
        if found is None:
            raise FslError("there is no CLINC150", where=str(self.data_dir), hint=self._get)
        return found

    def status(self) -> Status:
        """Its file, and the number of texts of each intent."""
        found = self.given_file or self._found()
        return super().status() if found else Status(missing=self._get)

    def _found(self) -> Path | None:
        folders = (self.data_dir / "text", self.data_dir / "clinc150", self.data_dir)
        return next((folder / name for folder in folders for name in FILES if (folder / name).is_file()), None)

    @property
    def _get(self) -> str:
        return f"put {SOURCE} into {self.data_dir / 'clinc150'}, or set dataset.file"

    def drawn(self, classes: Rows) -> Mapping[str, Rows]:
        """Intents or domains drawn for each split.

        Raises:
            FslError: the file has other intents than CLINC150.
        """
        of_domains = domains()
        intents = {intent for each in of_domains.values() for intent in each}
        if other := sorted(intents ^ classes.keys()):
            what = f"does not have the 150 intents of CLINC150: {other[0]} is {'missing' if other[0] in intents else 'another'}"
            raise FslError(what, where=str(self.file), hint=f"use {SOURCE}, or dataset=text")
        if self.held_out == "intents":
            return super().drawn(classes)
        splits = split_by_fractions(of_domains, self.fractions, self.split_seed)
        held = {split: sorted(intent for each in drawn.values() for intent in each) for split, drawn in splits.items()}
        return {split: {intent: classes[intent] for intent in names} for split, names in held.items()}


def domains() -> dict[str, list[str]]:
    """The 15 intents of each of the 10 domains."""
    text = package_files("fsl_cli.datasets").joinpath("clinc150_domains.txt").read_text(encoding="utf-8")
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {name: intents for name, *intents in lines}

"""The shape of an episode, and how it is drawn where episodes differ in size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from fsl_cli.settings.sizes import Size, bounds, sized

SUPPORT_SIZE = 500  # largest support set of Meta-Dataset's sampling

ShotsPer = Literal["episode", "class"]
Sampling = Literal["uniform", "meta_dataset"]


@dataclass(frozen=True)
class Drawing:
    """How the sizes of every episode are drawn; the largest ones are those of the `Task`.

    Attributes:
        ways: the fewest ways.
        shots: the fewest shots.
        queries: the fewest queries per class.
        shots_per: whether all classes of an ``episode`` have as many shots, or each ``class`` draws its own number.
        query_dirichlet: a, > 0: the ``ways * queries`` queries of an episode are shared by its classes in proportions that
            are drawn from a symmetric Dirichlet distribution (Veilleux et al. 2021, section 3); None: equally.
        sampling: ``meta_dataset``: shots and queries depend on the number of images of the classes, see
            `fsl_cli.episodes.class_sizes.meta_dataset_sizes`; ``shots`` and ``queries`` of the task are its limits.
        images: of a class, support and queries together: the queries are what the shots leave; None: drawn by themselves.
    """

    ways: int
    shots: int
    queries: int
    shots_per: ShotsPer = "episode"
    query_dirichlet: float | None = None
    sampling: Sampling = "uniform"
    images: int | None = None


@dataclass(frozen=True)
class Task:
    """The shape of an episode: ``shots`` support and ``queries`` query examples of each of ``ways`` classes.

    ``ways`` is 1 for problems without classes. Where episodes differ, these are the largest sizes, and ``drawing`` says how
    those of an episode are drawn; None: all episodes have this shape.
    """

    ways: int
    shots: int
    queries: int
    drawing: Drawing | None = None

    @classmethod
    def drawn(
        cls,
        ways: Size,
        shots: Size,
        queries: Size,
        *,
        shots_per: ShotsPer = "episode",
        query_dirichlet: float | None = None,
        sampling: Sampling = "uniform",
    ) -> Task:
        """The task of sizes some of which may be ranges; the options are those of `Drawing`."""
        (low_ways, ways), (low_shots, shots), (low_queries, queries) = (bounds(each) for each in (ways, shots, queries))
        shots_per = "episode" if low_shots == shots else shots_per
        drawing = Drawing(low_ways, low_shots, low_queries, shots_per, query_dirichlet, sampling)
        return cls(ways, shots, queries, None if drawing == Drawing(ways, shots, queries) else drawing)

    @property
    def smallest(self) -> Task:
        """The task of the smallest sizes, the same for all episodes."""
        if self.drawing is None:
            return self
        if self.drawing.sampling == "meta_dataset":
            return Task(self.drawing.ways, 1, 1)
        return Task(self.drawing.ways, self.drawing.shots, self.drawing.queries)

    @property
    def sizes(self) -> dict[str, Size]:
        """``ways``, ``shots`` and ``queries``."""
        drawing = self.drawing or self
        names = ("ways", "shots", "queries")
        return {name: sized(getattr(drawing, name), getattr(self, name)) for name in names}

    @property
    def balanced(self) -> bool:
        """Whether all classes of an episode have as many shots as each other, and as many queries."""
        drawing = self.drawing
        return drawing is None or (drawing.shots_per, drawing.query_dirichlet, drawing.sampling) == ("episode", None, "uniform")

    @property
    def limited_by_classes(self) -> bool:
        """Whether fewer ways are drawn where a split has fewer classes, as Meta-Dataset does."""
        return self.drawing is not None and self.drawing.sampling == "meta_dataset"

    @property
    def most_examples(self) -> int:
        """The largest number of examples of an episode."""
        if self.limited_by_classes:
            return max(SUPPORT_SIZE, self.ways) + self.ways * self.queries
        if self.drawing is not None and self.drawing.images is not None:
            return self.ways * self.drawing.images
        return self.ways * (self.shots + self.queries)

    def with_sizes(self, ways: Size | None = None, shots: Size | None = None, queries: Size | None = None) -> Task:
        """The task with other sizes, drawn in the same way; None: as they are."""
        own, how = self.sizes, self.drawing or Drawing(0, 0, 0)
        return Task.drawn(
            own["ways"] if ways is None else ways,
            own["shots"] if shots is None else shots,
            own["queries"] if queries is None else queries,
            shots_per=how.shots_per,
            query_dirichlet=how.query_dirichlet,
            sampling=how.sampling,
        )

    def with_images(self, images: int) -> Task:
        """The task with so many images of a class in every episode: the queries are what the (largest) shots leave.

        Args:
            images: more than shots.
        """
        shots = self.smallest.shots
        if shots == self.shots or not self.balanced:
            return self.with_sizes(queries=images - self.shots)
        task = self.with_sizes(queries=sized(images - self.shots, images - shots))
        assert task.drawing is not None
        return replace(task, drawing=replace(task.drawing, images=images))

    def with_at_most(self, classes: int) -> Task:
        """The task with no more ways than there are classes."""
        low, high = bounds(self.sizes["ways"])
        if high <= classes:
            return self
        changed = self.with_sizes(ways=sized(min(low, classes), classes))
        images = self.drawing.images if self.drawing else None
        return changed.with_images(images) if images is not None else changed

    def images_of_a_class(self) -> tuple[int, str]:
        """How many images a class must have, and for what, in words."""
        drawing = self.drawing
        if drawing is not None and drawing.sampling == "meta_dataset":
            return 2, "a shot and a query at least"
        if drawing is not None and drawing.query_dirichlet is not None:
            queries = self.ways * self.queries
            return self.shots + queries, f"{self.shots} shots + {queries} queries, which may all be of one class"
        if drawing is not None and drawing.images is not None:
            return drawing.images, f"{drawing.images} images of a class"
        return self.shots + self.queries, f"{self.shots} shots + {self.queries} queries"

    def __str__(self) -> str:
        if self.ways == 1:
            return f"{self.sizes['shots']}-shot, {self.sizes['queries']} queries"
        drawing = self.drawing
        if drawing is None:
            return f"{self.ways}-way {self.shots}-shot, {self.queries} queries per class"
        ways, shots, queries = self.sizes.values()
        if drawing.sampling == "meta_dataset":
            return f"{ways}-way, shots as in Meta-Dataset up to {shots}, at most {queries} queries per class"
        shots_per = " for each class" if drawing.shots_per == "class" else ""
        dirichlet = "" if drawing.query_dirichlet is None else f" on average (Dirichlet {drawing.query_dirichlet:g})"
        return f"{ways}-way {shots}-shot{shots_per}, {queries} queries per class{dirichlet}"

"""Draws of a program's sites: held together if they are few, made again whenever they are needed if they are many."""

import operator
from collections.abc import Iterator

import torch
from torch import Tensor

from bayeslora.isolation import seeded
from bayeslora.program import Program
from bayeslora.types import Sites

HELD = 32
"""Draws up to which all are held."""

BLOCK = 8
"""Draws that are held at once where there are more."""


class Drawn:
    """Draws of every site, block after block, the same each time that they are iterated over.

    Up to `HELD` draws are one block, which is kept. More come in blocks of `BLOCK`, each made from a seed of its own
    when its turn comes, so that memory does not grow with their number. A finite posterior has its members, each once.

    Args:
        program: The program.
        num_draws: Number of draws, S.
        seed: The same seed gives the same draws; None uses and advances torch's global state.
        auxiliary: Whether to draw what an automatic guide computes its sites from, too; the sites are the same.
        antithetic: Whether to draw in pairs, one the other's mirror image at Gaussian sites.

    Attributes:
        num_draws: S, or the number of members.

    Raises:
        ValueError: If S is below 1, or there is nothing to mirror.
    """

    def __init__(
        self, program: Program, num_draws: int, seed: int | None, auxiliary: bool = False, antithetic: bool = False
    ):
        if num_draws < 1:
            raise ValueError(f"num_draws={num_draws}: give a whole number of at least 1.")
        finite = program.method.num_draws(program.guide)
        self.program = program
        self.auxiliary, self.antithetic = auxiliary, antithetic
        self.num_draws = finite or operator.index(num_draws)
        self.kept: Sites | None = None
        with seeded(seed):
            if finite or self.num_draws <= HELD:
                self.kept = self._draw(self.num_draws)
            else:
                self.seeds = torch.randint(2**62, (-(-self.num_draws // BLOCK),)).tolist()

    def __iter__(self) -> Iterator[Sites]:
        """Iterate over blocks, `[draw, layer, …]` by the site's name."""
        if self.kept is not None:
            yield self.kept
            return
        for index, seed in enumerate(self.seeds):
            yield self._block(index, seed)  # without a name, so that it is gone before the next one is made

    def _block(self, index: int, seed: int) -> Sites:
        with seeded(seed):
            return self._draw(min(BLOCK, self.num_draws - index * BLOCK))

    def _draw(self, num_draws: int) -> Sites:
        drawn = self.program.draw(num_draws, self.auxiliary, self.antithetic)
        return {name: value.detach() for name, value in drawn.items()}

    def together(self) -> dict[str, Tensor]:
        """Return all draws, `[draw, layer, …]` by the site's name."""
        if self.kept is not None:
            return dict(self.kept)
        blocks = list(self)
        return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}


def draw(program: Program, num_draws: int, seed: int | None, antithetic: bool = False) -> dict[str, Tensor]:
    """Draw every site, `[draw, layer, …]`; of a finite posterior, return the members, each once."""
    return Drawn(program, num_draws, seed, antithetic=antithetic).together()

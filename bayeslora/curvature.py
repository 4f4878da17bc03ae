"""Gauss-Newton matrices over the factors, Kronecker-factored."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import pyro
import torch
from torch import Tensor, nn

from bayeslora.adapters import split_site
from bayeslora.adapters.gradients import writes_in_place
from bayeslora.adapters.stack import each_factor
from bayeslora.fitted import FittedProgram
from bayeslora.tasks import Likelihood
from bayeslora.types import WEIGHTS, Batch

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]
"""A forward hook of a module: takes the module, its inputs and its output, and returns the output."""


class Kronecker(NamedTuple):
    r"""A factored matrix $R \otimes C$ over the entries of a matrix: R over its rows, C over its columns.

    Both are given by eigenvectors, `[size, rank]`, and eigenvalues, `[rank]`; other directions have eigenvalue 0.
    """

    row_basis: Tensor
    row_values: Tensor
    column_basis: Tensor
    column_values: Tensor


def nearest_sum(first: Kronecker, second: Kronecker) -> Kronecker:
    r"""Return the Kronecker product nearest to the sum of two, in the Frobenius norm, of the ranks of the first.

    With $R_k \otimes C_k$ the two, it is $R \otimes C$ with $R = \sum_k u_k R_k$ and $C = \sum_k v_k C_k$: their
    rearrangement has rank 2, and $u v^\top$ comes from its largest singular vectors. These are not negative, as inner
    products of positive semi-definite matrices are not, so that $R$ and $C$ are positive semi-definite again.

    References:
        Van Loan and Pitsianis (1993), Approximation with Kronecker products.
    """
    R = [(part.row_basis, part.row_values) for part in (first, second)]
    C = [(part.column_basis, part.column_values) for part in (first, second)]
    rows, columns = _inner_products(R), _inner_products(C)
    # With the roots of both Gram matrices, the rearrangement's singular vectors are those of a 2 × 2 matrix.
    left, right = _root(rows), _root(columns)
    U, values, Vt = torch.linalg.svd(left.T @ right)
    if not values[0] > 0:
        return first
    u, v = (torch.linalg.pinv(root.T) @ side for root, side in ((left, U[:, 0]), (right, Vt[0])))
    u, v = (values[0] * u.abs()).tolist(), v.abs().tolist()
    of_rows, of_columns = _weighted(R, u, first.row_basis.shape[1]), _weighted(C, v, first.column_basis.shape[1])
    return Kronecker(*of_rows, *of_columns)


Eigen: TypeAlias = tuple[Tensor, Tensor]
"""Eigenvectors, `[size, rank]`, and eigenvalues, `[rank]`, of a symmetric matrix."""


def _inner_products(parts: Sequence[Eigen]) -> Tensor:
    """Return tr(M_j M_k) of matrices, in double precision."""
    roots = [(basis * values.clamp(min=0).sqrt()).double() for basis, values in parts]
    return torch.stack([torch.stack([(a.T @ b).square().sum() for b in roots]) for a in roots])


def _root(gram: Tensor) -> Tensor:
    """Return a square root S of a positive semi-definite matrix, S Sᵀ."""
    values, basis = torch.linalg.eigh(gram)
    return basis * values.clamp(min=0).sqrt()


def _weighted(parts: Sequence[Eigen], weights: Sequence[float], rank: int) -> Eigen:
    """Return the largest eigenvectors and eigenvalues of a sum of matrices with weights that are not negative."""
    total = Gram(rank)
    for (basis, values), weight in zip(parts, weights, strict=True):
        total.add((basis * (weight * values.clamp(min=0)).sqrt()).T)
    basis, values = total.eigh()
    like = parts[0][0]
    return basis.to(like), values.to(like)


class Gram:
    r"""The Gram matrix $\sum x x^\top$ of vectors that come in batches, or an approximation of a given rank.

    Args:
        rank: Number of eigenvectors. If it is less than the size of a vector, the matrix of the vectors so far is
            truncated after each batch.
    """

    def __init__(self, rank: int):
        self.rank = rank
        self.trace = 0.0
        self.exact: Tensor | None = None
        self.root: Tensor | None = None

    def add(self, vectors: Tensor) -> None:
        """Add vectors, `[…, size]`."""
        rows = vectors.reshape(-1, vectors.shape[-1])
        self.trace += float(rows.double().square().sum())
        if self.rank >= rows.shape[1]:
            gram = rows.double().T @ rows.double()
            self.exact = gram if self.exact is None else self.exact + gram
            return
        stacked = rows if self.root is None else torch.cat([self.root, rows])
        _, values, basis = torch.linalg.svd(stacked, full_matrices=False)
        self.root = values[: self.rank, None] * basis[: self.rank]

    def add_if_none(self, zero: Tensor) -> None:
        """Add a vector that is 0, `[1, size]`, if there is none: a layer may not be called, or not reach the logits."""
        if self.exact is None and self.root is None:
            self.add(zero)

    def eigh(self) -> tuple[Tensor, Tensor]:
        """Return eigenvectors, `[size, rank]`, and eigenvalues, `[rank]`."""
        if self.exact is not None:
            values, basis = torch.linalg.eigh(self.exact)
            return basis, values.clamp(min=0)
        assert self.root is not None
        values = self.root.double().norm(dim=1)  # in single precision, squares of what is small are 0
        known = values > torch.finfo(self.root.dtype).eps * values.max()  # the others are rounding
        values = torch.where(known, values, 0.0)
        basis = (self.root / torch.where(known, values, torch.inf)[:, None]).to(self.root).T
        values = values.to(self.root)
        missing = self.rank - len(values)  # fewer vectors than the rank
        return torch.nn.functional.pad(basis, (0, missing)), torch.nn.functional.pad(values.square(), (0, missing))


class Curvature:
    """Sums over the data for one matrix of factors of one layer.

    Args:
        ranks: Numbers of eigenvectors for rows and columns.

    Attributes:
        trace: The trace of the whole matrix, where it was measured.
    """

    def __init__(self, ranks: tuple[int, int]):
        self.gradients, self.inputs = (Gram(rank) for rank in ranks)
        self.positions = 0
        self.trace: float | None = None

    def kronecker(self) -> Kronecker:
        """Return the factored matrix: summed gradients ⊗ mean inputs, with the trace that was measured, if any."""
        inputs, input_values = self.inputs.eigh()
        scale = 1 / max(self.positions, 1)
        product = self.gradients.trace * self.inputs.trace
        if self.trace is not None and product > 0:
            scale = self.trace / product
        return Kronecker(*self.gradients.eigh(), inputs, input_values * scale)


def gauss_newton(
    program: FittedProgram, batches: Iterable[Batch], ranks: Mapping[str, tuple[int, int]]
) -> dict[str, list[Kronecker]]:
    r"""Compute Kronecker-factored Gauss-Newton matrices of the negative log-likelihood at the centre.

    They are sums over examples. A matrix of factors F maps inputs z to F z, at positions t of examples n; it has the
    Gauss-Newton matrix

    $$\sum_n J_n^\top \Lambda_n J_n \;\approx\; \Big(\sum_{n,t,c} g_{ntc}\, g_{ntc}^\top\Big) \otimes
      \Big(\frac1M \sum_{n,t} z_{nt}\, z_{nt}^\top\Big),$$

    with $\Lambda_n$ the Hessian of the negative log-likelihood in the logits, $\Lambda = S S^\top$, and $g_{ntc}$ the
    gradient with respect to F z of the logits' product with column c of S. M counts the positions that have a gradient,
    which excludes padding. The adapter family says what z and g are, in `Family.curvature`: for `A`, z = x; for `B`,
    z = s A x; for `weight`, which has the bias as its last column, z = (x, 1).

    Of a layer that a pass calls several times, all calls are positions. Its gradients at different calls are far from
    independent: the product is scaled to the trace of the matrix on the left, which is measured, unless the layer's
    inputs do not have the examples in their first dimension.

    Args:
        program: A program, in evaluation mode.
        batches: Batches with labels.
        ranks: The wanted matrices, `<stack>.<name>`, and how many eigenvectors of their rows and columns to keep.

    Returns:
        The factored matrix of each layer, for each wanted matrix.

    Raises:
        ValueError: If labels are about more than a number, or a vector of logits, per example; or if the network writes
            into the input of a layer.

    References:
        Martens and Grosse (2015), [Optimizing Neural Networks with Kronecker-factored Approximate
        Curvature](https://arxiv.org/abs/1503.05671).
    """
    names = dict.fromkeys(split_site(site)[0] for site in ranks)
    layers = [(name, index) for name in names for index in range(len(program.stacks[name]))]
    sums = {(site, index): Curvature(ranks[site]) for site in ranks for index in _indices(program, site)}
    factors = each_factor(program.factors_at(program.centre()), Tensor.detach)
    uses: list[Use] = []
    measured: set[tuple[str, int]] | None = None

    def matrices(use: Use, g: Tensor) -> dict[tuple[str, int], tuple[Tensor, Tensor]]:
        name, index = use.layer
        if use.input._version != use.version:
            raise ValueError(writes_in_place(program.network.model))
        its_factors = type(factors[name])(*(factor[index] for factor in factors[name]))
        dtype = its_factors[0].dtype  # the network may be in half precision
        s, x = program.network.scaling(name)[index], use.input.to(dtype)
        stack = program.stacks[name]
        parts = {stack.site(part): v for part, v in stack.family.curvature(its_factors, s, x, g.to(dtype)).items()}
        return {(site, index): value for site, value in parts.items() if site in ranks}

    hooks = [
        program.network.layers(name)[index].register_forward_hook(_keep(uses, (name, index))) for name, index in layers
    ]
    try:
        for batch in batches:
            uses.clear()
            with torch.enable_grad():
                logits = program.network_logits(factors, batch)
            outputs = [use.output for use in uses]
            columns = hessian_root(program.likelihood, logits, batch["labels"])
            if WEIGHTS in batch:  # of log-likelihoods, and so of their Hessians
                roots = batch[WEIGHTS].to(logits).sqrt().view(-1, *[1] * (logits.dim() - 1))
                columns = [column * roots for column in columns]
            if measured is None:
                measured = _measurable(uses, logits, columns)
            reached = [torch.zeros_like(output[..., 0], dtype=torch.bool) for output in outputs]
            for column in columns:
                gradients = torch.autograd.grad(logits, outputs, column, retain_graph=True, allow_unused=True)
                totals: dict[tuple[str, int], Tensor] = {}
                for use, g, where in zip(uses, gradients, reached, strict=True):
                    if g is None:  # no way leads from this call to the logits
                        continue
                    where |= g.any(-1)
                    for matrix, (z, gradient) in matrices(use, g).items():
                        sums[matrix].gradients.add(gradient)
                        if use.layer in measured:
                            of_examples = _by_example(gradient, len(logits)).mT @ _by_example(z, len(logits))
                            totals[matrix] = totals.get(matrix, 0) + of_examples
                for matrix, total in totals.items():
                    sums[matrix].trace = (sums[matrix].trace or 0.0) + float(total.double().square().sum())
            for use, where in zip(uses, reached, strict=True):
                for matrix, (z, _) in matrices(use, use.output.detach()).items():
                    sums[matrix].inputs.add(z[where])
                    sums[matrix].positions += int(where.sum())
    finally:
        for hook in hooks:
            hook.remove()
        program.network.unbind()
    for (site, _), both in sums.items():
        stack, name = split_site(site)
        shape = program.stacks[stack].matrix_shapes[name]
        for part, size in zip((both.gradients, both.inputs), shape, strict=True):
            part.add_if_none(torch.zeros(1, size, dtype=program.network.dtype, device=program.device))
    return {site: [sums[site, index].kronecker() for index in _indices(program, site)] for site in ranks}


def hessian_root(likelihood: Likelihood, logits: Tensor, labels: Tensor) -> list[Tensor]:
    r"""Return columns of a root S of the Hessian of the negative log-likelihood, $\Lambda = S S^\top$.

    Each has the shape of the logits. Columns that are zero for all examples are left out: a softmax of C classes has
    C − 1.

    Args:
        likelihood: Labels given logits.
        logits: A number, `[batch]`, or a vector, `[batch, class]`, per example.
        labels: The labels.
    """
    if logits.dim() > 2:
        raise ValueError(
            f"Labels are about outputs {tuple(logits.shape)}; the curvature needs a vector of logits per example."
        )
    f = logits.detach().to(torch.promote_types(logits.dtype, torch.float32)).requires_grad_()
    with torch.enable_grad(), pyro.validation_enabled(False):
        nll = -likelihood.log_prob(f, labels).sum()
        (gradient,) = torch.autograd.grad(nll, f, create_graph=True)
        columns = gradient.view(len(f), -1).unbind(1)
        rows = [torch.autograd.grad(column.sum(), f, retain_graph=True)[0].view(len(f), -1) for column in columns]
    values, vectors = torch.linalg.eigh(torch.stack(rows, dim=1).double())
    root = (vectors * values.clamp(min=0).sqrt()[:, None]).to(logits.dtype)
    nonzero = values.amax(0) > values.max() * torch.finfo(f.dtype).eps
    return [column.view(logits.shape) for column in root[..., nonzero].unbind(-1)]


def _indices(program: FittedProgram, site: str) -> range:
    return range(len(program.stacks[split_site(site)[0]]))


def _by_example(values: Tensor, size: int) -> Tensor:
    """Return the vectors at the positions of each example, `[example, position, …]`."""
    return values.reshape(size, -1, values.shape[-1])


def _measurable(uses: Sequence["Use"], logits: Tensor, columns: Sequence[Tensor]) -> set[tuple[str, int]]:
    """Return the layers that were called several times, on inputs with the examples in their first dimension."""
    calls = Counter(use.layer for use in uses)
    several = {layer for layer, count in calls.items() if count > 1}
    if not several or not columns:
        return set()
    # What the first example's logits depend on is the first example.
    first = torch.zeros_like(columns[0])
    first[0] = columns[0][0]
    gradients = torch.autograd.grad(logits, [use.output for use in uses], first, retain_graph=True, allow_unused=True)
    for use, g in zip(uses, gradients, strict=True):
        if len(use.output) % len(logits) or (g is not None and bool(g[len(g) // len(logits) :].any())):
            several.discard(use.layer)
    return several


class Use(NamedTuple):
    """One call of a layer, by its stack and number: its input, and its output as something to differentiate by.

    Args:
        layer: The layer.
        input: Its input.
        version: How often the input had been written into.
        output: Its output.
    """

    layer: tuple[str, int]
    input: Tensor
    version: int
    output: Tensor


def _keep(uses: list[Use], layer: tuple[str, int]) -> Hook:
    """Return a hook that keeps every call of a layer: some networks call one several times in a pass."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0].detach()
        # Before the first adapted layer nothing has a gradient.
        uses.append(Use(layer, x, x._version, output if output.requires_grad else output.requires_grad_()))
        return output.clone()  # the network may write into it, as nn.ReLU(inplace=True) does

    return hook

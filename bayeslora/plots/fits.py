"""Figures of a fit and of its draws."""

import os.path
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bayeslora.contracts import ArgumentError, checked
from bayeslora.contracts.arrays import Draws
from bayeslora.plots.base import COLOURS, Groups, Table, Tuned, axes_of, name_curves, plain, styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@checked()
def losses(history: Table) -> "Figure":
    """Plot loss, NLL and weighted KLs of each training step, smoothed, and the NLL of held-out data after each epoch.

    Args:
        history: `posterior.history`.
    """
    figure, axes = axes_of(5.2, 4.2)
    steps = history["step"].to_numpy()
    columns = [name for name in history.columns if name not in ("step", "epoch", "validation_nll", "component")]
    window = max(len(history) // 50, 1)
    for style, name in zip(styles(), columns, strict=False):
        values = history[name].rolling(window, min_periods=1, center=True).mean().to_numpy()
        axes.plot(steps, values, **style | {"marker": ""}, linewidth=1.3, label=plain(name))
    if "validation_nll" in history and history["validation_nll"].notna().any():
        held_out = history.dropna(subset="validation_nll")
        axes.plot(held_out["step"], held_out["validation_nll"], "ko", ms=4, label="NLL of held-out data, centre")
    axes.set(xlabel="step", ylabel="nats per example")
    name_curves(figure, axes, len(columns), None)
    return figure


@checked()
def layers(groups: Groups) -> "Figure":
    """Plot medians and 90 % intervals of each layer's ‖ΔW‖, and of its noise over it where it has any.

    Draws that are not finite are left out.

    Args:
        groups: `posterior.to_arviz()`.

    Raises:
        ArgumentError: If there is no layer in it, as in that of a mixture.
    """
    found: dict[str, list[tuple[str, np.ndarray]]] = {"delta_norm": [], "noise_to_signal": []}
    for variable, values in groups.posterior.data_vars.items():
        kind = next((kind for kind in found if str(variable).startswith(f"{kind}_")), None)
        if kind is not None:
            names = values[values.dims[-1]].to_numpy()
            found[kind] += zip(map(str, names), values.to_numpy().reshape(-1, len(names)).T, strict=True)
    if not found["delta_norm"]:
        raise ArgumentError(
            "groups has no layers: give what posterior.to_arviz returns; a mixture's components have it."
        )
    noisy = any(np.any(np.nan_to_num(draws)) for _, draws in found["noise_to_signal"])
    shown = found if noisy else {"delta_norm": found["delta_norm"]}
    # Names of layers are long, and begin alike: that part is said once, beside them.
    every = [name for rows in shown.values() for name, _ in rows]
    shared = os.path.commonprefix(every).rpartition(".")[0]  # noqa: RUF071 (cut at a dot)
    names = {kind: [plain(name.removeprefix(f"{shared}.")) for name, _ in rows] for kind, rows in shown.items()}
    width = 2.4 * len(shown) + 0.07 * max(map(len, names["delta_norm"])) + 0.4
    figure, axes = axes_of(width, 0.2 * len(found["delta_norm"]) + 1.3, len(shown))
    titles = {"delta_norm": "‖ΔW‖", "noise_to_signal": "noise / ‖ΔW‖ of the centre"}
    for each, (kind, rows) in zip(np.ravel(axes), shown.items(), strict=True):
        kept = [draws[np.isfinite(draws)] for _, draws in rows]
        low, middle, high = np.array(
            [np.quantile(draws, (0.05, 0.5, 0.95)) if draws.size else np.full(3, np.nan) for draws in kept]
        ).T
        each.errorbar(middle, np.arange(len(rows)), xerr=[middle - low, high - middle], fmt="o", ms=3, color=COLOURS[1])
        is_named = kind == "delta_norm" or names[kind] != names["delta_norm"]
        each.set_yticks(np.arange(len(rows)), names[kind] if is_named else [""] * len(rows), fontsize=8)
        each.set(xlabel=titles[kind], xlim=(0, None), ylim=(len(rows) - 0.5, -0.5))
    np.ravel(axes)[0].set_ylabel(plain(shared))
    return figure


@checked()
def simplex(draws: Draws, class_names: Sequence[str] | None = None) -> "Figure":
    """Plot draws of the class probabilities of a few examples on a triangle, with their mean.

    An aleatoric example is a small cloud far from all corners; an epistemic one is a large cloud. Of more than three
    classes, the two that are most probable on average have corners, and all others together.

    Args:
        draws: `[draw, example, class]`, such as `prediction.draws[:, [3, 14]]`.
        class_names: Names of the classes.

    Raises:
        ArgumentError: If there are fewer than two classes, no example, another number of names, or a probability that
            is not finite.
    """
    draws = np.asarray(draws, dtype=np.float64)
    if draws.ndim != 3 or draws.shape[-1] < 2 or not draws.size:
        raise ArgumentError(f"draws is of shape {draws.shape}: give [draw, example, class], with two classes or more.")
    if not np.isfinite(draws).all():
        bad = sorted({*np.argwhere(~np.isfinite(draws))[:, 1].tolist()})
        raise ArgumentError(f"draws: example {bad[0]} has probabilities that are not finite: leave it out.")
    names = [*map(str, range(draws.shape[-1]))] if class_names is None else list(class_names)
    if len(names) != draws.shape[-1]:
        raise ArgumentError(f"class_names has {len(names)}, and draws are of {draws.shape[-1]} classes.")
    if draws.shape[-1] == 2:
        draws, names = np.concatenate([draws, np.zeros_like(draws[..., :1])], axis=-1), [*names, ""]
    elif draws.shape[-1] > 3:
        first, second = np.argsort(-draws.mean((0, 1)))[:2]
        rest = 1 - draws[..., first] - draws[..., second]
        draws, names = (
            np.stack([draws[..., first], draws[..., second], rest], -1),
            [names[first], names[second], "others"],
        )
    corners = np.array([[0, 0], [1, 0], [0.5, 0.75**0.5]])
    figure, axes = axes_of(5.2, 5.0)
    axes.plot(*corners[[0, 1, 2, 0]].T, color="0.6", linewidth=1)
    for corner, name, above in zip(corners, names, (-0.06, -0.06, 0.03), strict=True):
        axes.text(corner[0], corner[1] + above, plain(name), ha="center")
    for number, style in zip(range(draws.shape[1]), styles(), strict=False):
        points = draws[:, number] @ corners
        axes.plot(*points.T, style["marker"], color=style["color"], ms=3, alpha=0.5)
        axes.plot(*points.mean(0), style["marker"], color=style["color"], ms=9, mec="k", label=f"example {number}")
    axes.set_aspect("equal")
    axes.axis("off")
    name_curves(figure, axes, draws.shape[1], "upper right")
    return figure


@checked()
def dial(tuning: Tuned) -> "Figure":
    """Plot the NLL of rows that were not trained on against the values of a dial.

    The bars are standard errors of the differences from the best value: a value whose bar reaches down to its line is
    as good, as far as these rows can tell.

    Args:
        tuning: How the dial was set: `posterior.tuning`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.subplots()
    values, nll = tuning.curve["value"], tuning.curve["nll"]
    style = next(styles())
    axes.errorbar(values, nll, tuning.curve["se_difference"], **style, ms=4, elinewidth=1, capsize=2)
    axes.axhline(nll.min(), color="0.6", linewidth=1, linestyle="--")
    axes.axvline(tuning.chosen, color=COLOURS[1], linewidth=1, label=f"chosen: {tuning.chosen:.3g}")
    if len(values) > 1 and values.min() > 0:
        axes.set_xscale("log")
    axes.set(xlabel=tuning.dial, ylabel=f"NLL of {tuning.rows} rows, nats")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure

"""What predictions are worth, in words with numbers, in tables and in figures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bayeslora import metrics, plots
from bayeslora.metrics import FloatArray
from bayeslora.report.page import Picture, Section, Table, picture
from bayeslora.study.intervals import Estimate, estimate, estimate_of_rows, unless_constant
from bayeslora.tasks.prediction import BasePrediction

NUM_SAMPLES = 200
"""Sets of labels that are drawn from a prediction, to see what its calibration error would be if it were right."""

LEAST = 0.0005
"""The smallest share of uncertainty that does not round to 0.0 %."""

COARSEST = 0.2
"""The largest ECE that may be chance where it is said that a prediction is calibrated."""

LEARNED = "A prediction that is the same for all examples has {0:.3f}: {1}"

Left = Mapping[str, Sequence[float]]
"""Each score without one block of examples after another."""


def score(scores: Mapping[str, float], left_out: Left, name: str) -> Estimate:
    """Return a score with its interval over test examples; half its width is NaN where that is not known."""
    left = np.array([left_out[name]]) if name in left_out else None
    return unless_constant(estimate(np.array([scores[name]]), left))


def wrong_of(prediction: BasePrediction, labels: np.ndarray) -> np.ndarray | None:
    """Return whether each row is predicted wrong, of tokens too; None where that is not a matter of yes or no."""
    wrong = prediction.wrong(labels)
    if wrong is None and labels.dtype.kind in "iu" and prediction.predicted.shape == labels.shape and labels.ndim == 1:
        wrong = prediction.predicted != labels
    return None if wrong is None or len(wrong) != len(prediction) else np.asarray(wrong)  # or windows of questions


def lead(
    prediction: BasePrediction,
    labels: np.ndarray,
    scores: Mapping[str, float],
    left_out: Left,
    centre: FloatArray | None = None,
) -> list[str]:
    """Return the verdicts, a sentence or two for each question that a reader has.

    Args:
        prediction: The predictions.
        labels: Their labels.
        scores: The scores of both.
        left_out: The same without each block of examples.
        centre: Log predictive density of each example at the centre, in nats; None if that is not known.
    """
    found = [_accuracy(prediction, labels, scores, left_out), _nll(labels, scores, left_out, prediction, centre)]
    if "ece" in scores:
        found.append(_calibration(np.asarray(getattr(prediction, "probs", None)), labels, scores["ece"]))
    if "coverage_90" in scores:
        found.append(_coverage(scores["coverage_90"], len(labels)))
    found.append(_ranking(prediction, labels))
    found.append(_parts(prediction))
    return [sentence for sentence in found if sentence]


def _accuracy(prediction: BasePrediction, labels: np.ndarray, scores: Mapping[str, float], left_out: Left) -> str:
    name = next((name for name in ("exact_match", "accuracy") if name in scores), None)
    if name is None:
        return ""
    found = score(scores, left_out, name)
    what = {"accuracy": "right", "exact_match": "entirely right"}[name]
    rows = "1 row is" if len(prediction) == 1 else f"{len(prediction):,} rows are"
    text = f"{found.value:.1%} of {rows} predicted {what}{_interval(found, prediction)}."
    if name == "accuracy" and labels.ndim == 1 and labels.dtype.kind in "iu":
        text += f" Always the most frequent class would be right in {metrics.majority_rate(labels):.1%}."
    return text


def _interval(found: Estimate, prediction: BasePrediction) -> str:
    from scipy.stats import binomtest

    low, high = max(found.value - found.half, 0), min(found.value + found.half, 1)
    if math.isnan(found.half):
        # All are right, or none: leaving some out changes nothing, and the binomial distribution says how far that
        # goes. Rows that are tokens are not independent.
        if found.value not in (0, 1) or getattr(prediction, "rows", None) is not None:
            return ""
        ends = binomtest(round(found.value * len(prediction)), len(prediction)).proportion_ci(method="wilson")
        low, high = ends.low, ends.high
    return f" (95 % interval {low:.1%} to {high:.1%})"


def _nll(
    labels: np.ndarray,
    scores: Mapping[str, float],
    left_out: Left,
    prediction: BasePrediction,
    centre: FloatArray | None,
) -> str:
    found = score(scores, left_out, "nll")
    half = "" if math.isnan(found.half) else f" ± {found.half:.3f}"
    text = f"The NLL is {found.value:.3f}{half} nats per example."
    if "ece" in scores and labels.ndim == 1 and "nll_per_token" not in scores:
        same = metrics.frequency_nll(labels)
        ends = found.half if not math.isnan(found.half) else 0.0
        learned = "it has learned." if found.value + ends < same else "it is not shown that anything has been learned."
        text += " " + LEARNED.format(same, learned)
    if centre is not None and len(prediction.draws) > 1:
        apart = estimate_of_rows((centre - prediction.log_density(labels))[None])
        shown = round(apart.value, 3) + 0.0  # not −0
        how = "level with" if apart.is_zero or shown == 0 else "better than" if shown < 0 else "worse than"
        if not math.isnan(apart.half):  # of one example
            text += f" The average of draws is {how} the centre alone ({shown:+.3f} ± {apart.half:.3f})."
    return text


def _calibration(probs: np.ndarray, labels: np.ndarray, ece: float) -> str:
    """Say whether confidence is what it claims: by the error that labels drawn from the prediction would have."""
    confidence, rng = probs.max(-1), np.random.default_rng(0)
    index = np.searchsorted(np.linspace(0, 1, metrics.NUM_BINS + 1), confidence, side="left")
    draws = ((rng.random(len(confidence)) < confidence) - confidence for _ in range(NUM_SAMPLES))
    errors = np.array([np.abs(np.bincount(index, gaps)).sum() / len(confidence) for gaps in draws])
    accuracy = float((probs.argmax(-1) == labels).mean())
    numbers = f"ECE {ece:.3f}, where a perfectly calibrated prediction would have {errors.mean():.3f}"
    chance = float(np.quantile(errors, 0.95))
    if ece <= chance + 1e-9:  # of one label, both are the same gap
        if chance > COARSEST:
            return (
                f"Whether it is calibrated is not known: the ECE is {ece:.3f}, and up to {chance:.3f} would be chance "
                f"in so few labels ({len(labels)})."
            )
        return f"Calibrated, as far as {len(labels):,} rows can tell: {numbers}."
    gap = confidence.mean() - accuracy
    word = "Overconfident" if gap > 0 else "Underconfident"
    said = f"the mean confidence is {confidence.mean():.1%}, the accuracy {accuracy:.1%}"
    return f"{word}: {said} ({numbers}). A temperature, posterior.calibrate(validation), may help."


def _coverage(share: float, count: int) -> str:
    from scipy.stats import binomtest

    if binomtest(round(share * count), count, 0.9).pvalue > 0.05:
        if binomtest(count, count, 0.9).pvalue > 0.05:  # not even if they held every label
            return f"The 90 % intervals hold {share:.1%} of so few labels ({count}) that too wide ones would not show."
        return f"Calibrated, as far as {count:,} examples can tell: the 90 % intervals hold {share:.1%} of the labels."
    word = "narrow" if share < 0.9 else "wide"
    return f"The intervals are too {word}: those of 90 % hold {share:.1%} of {count:,} labels."


SAME = 1e-4
"""Differences of entropies in nats that are too small to go by."""


def _ranking(prediction: BasePrediction, labels: np.ndarray) -> str:
    wrong = wrong_of(prediction, labels)
    if wrong is None:
        return ""
    area = metrics.auroc_errors(prediction.entropy, wrong)
    if math.isnan(area):
        return ""
    if np.ptp(prediction.entropy) < SAME:
        return "Uncertainty is next to the same for all examples: it does not tell errors from what is right."
    word = "well" if area >= 0.8 else "somewhat" if area >= 0.65 else "hardly"
    return (
        f"Uncertainty finds errors {word}: a wrong prediction has a higher entropy than a right one with probability "
        f"{area:.2f}."
    )


def _parts(prediction: BasePrediction) -> str:
    if len(prediction.draws) < 2:
        return "There is one draw: what the adapters do not know (the epistemic part of uncertainty) cannot be seen."
    variances: list[Any] = [getattr(prediction, name, None) for name in ("epistemic_variance", "variance")]
    if all(each is not None for each in variances):
        part, whole, what = float(variances[0].mean()), float(variances[1].mean()), "variance"
    else:
        part, whole, what = float(prediction.epistemic.mean()), float(prediction.entropy.mean()), "uncertainty"
    if whole <= 0:
        return ""
    if part / whole < LEAST:
        return f"Draws of the adapters agree: next to all of the {what} is aleatoric, in the examples themselves."
    return (
        f"{part / whole:.1%} of the {what} is epistemic: draws of the adapters disagree, and more labels could remove "
        "it. The rest is aleatoric, in the examples themselves."
    )


def scores_table(scores: Mapping[str, float], left_out: Left, centre: Mapping[str, float]) -> Table:
    """Return the table of scores, with intervals over examples, beside those of the centre."""
    rows = []
    for name, value in scores.items():
        found = score(scores, left_out, name)
        half = "" if math.isnan(found.half) else f" ± {_score(found.half)}"
        rows.append([name.replace("_", " "), f"{_score(value)}{half}"] + ([_score(centre[name])] if centre else []))
    columns = ["score", "draws"] + (["centre"] if centre else [])
    return Table("Scores of the average of draws, with 95 % intervals over test examples", columns, rows)


def pictures(prediction: BasePrediction, labels: np.ndarray, scores: Mapping[str, float]) -> list[Picture]:
    """Return the figures that this kind of label has."""
    found = []
    wrong = wrong_of(prediction, labels)
    if "ece" in scores:
        probs: Any = getattr(prediction, "probs", None)
        bins = metrics.reliability(probs, labels, adaptive=True)
        text = "Accuracy against confidence, with intervals, above the share of rows at each confidence."
        caption = "Reliability: points on the diagonal are calibrated. Bars are 95 % intervals of the accuracy."
        found.append(picture(plots.reliability({"draws": bins}), text, caption))
    if getattr(prediction, "interval", None) is not None:
        text, caption = "Predicted means against labels.", "On the diagonal, predictions are right."
        found.append(picture(plots.regression(prediction, labels), text, caption))
    if wrong is not None and 0 < wrong.sum() < len(wrong):
        curve = thinned(metrics.risk_coverage(prediction.entropy, wrong))
        area = metrics.aurc(prediction.entropy, wrong)
        text = f"Error rate of the surest rows, from {curve['risk'][0]:.2f} to {curve['risk'][-1]:.2f} for all of them."
        caption = f"Risk and coverage: what is wrong among the surest rows. Its area is {area:.3f}."
        found.append(picture(plots.risk_coverage({"entropy": curve}), text, caption))
        values = {"right": prediction.entropy[~wrong], "wrong": prediction.entropy[wrong]}
        text = "Histograms of the entropy of right and of wrong predictions."
        found.append(picture(plots.uncertainties(values), text, "Entropy of right and wrong predictions."))
    elif wrong is None:
        label = "standard deviation" if getattr(prediction, "variance", None) is not None else "entropy, nats"
        spread = np.sqrt(prediction.variance) if "deviation" in label else prediction.entropy  # type: ignore[attr-defined]
        text = f"Histogram of the {label} of the predictions."
        found.append(picture(plots.uncertainties({"test": spread}, label), text, f"Uncertainty: {label}."))
    return found


def thinned(curve: Mapping[str, FloatArray], most: int = 500) -> dict[str, FloatArray]:
    """Return a curve with so few points that a page stays small."""
    size = len(curve["coverage"])
    kept = np.unique(np.linspace(0, size - 1, min(size, most)).round().astype(int))
    return {name: np.asarray(values)[kept] for name, values in curve.items()}


def decisions(prediction: BasePrediction, labels: np.ndarray, risks: Sequence[float]) -> Section | None:
    """Return what can be left to the model at chosen risks; None for labels that know no such decisions."""
    import warnings

    wrong = prediction.wrong(labels)
    if wrong is None:
        return None
    section = Section("Decisions")
    if prediction.held_out is not None:
        rows = []
        for risk in risks:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                answered = ~prediction.abstain(risk)
            error = f"{wrong[answered].mean():.1%}" if answered.any() else "–"
            rows.append([f"{risk:.1%}", f"{answered.mean():.1%}", error])
        section.tables.append(
            Table("Answering with a promise", ["risk allowed", "answered", "wrong among the answered"], rows)
        )
        section.says.append(
            f"Thresholds are from {len(prediction.held_out):,} held-out rows. With probability 90 % over them, the "
            "error rate of what is answered is at most the risk allowed, for new rows that are like them."
        )
        return section
    curve = metrics.risk_coverage(prediction.uncertainties["entropy"], wrong)
    places = [max(round(share * len(wrong)), 1) - 1 for share in (0.5, 0.7, 0.8, 0.9, 0.95, 1)]
    rows = [[f"{curve['coverage'][place]:.0%}", f"{curve['risk'][place]:.1%}"] for place in places]
    section.tables.append(Table("In hindsight: errors among the surest rows", ["answered", "wrong among them"], rows))
    for risk in risks:
        passing = np.flatnonzero(curve["risk"] <= risk)
        share = curve["coverage"][passing[-1]] if len(passing) else 0.0
        section.says.append(f"At a risk of {risk:.0%}, {share:.0%} of these rows could have been answered.")
    section.says.append(
        "The labels of these rows were used to say so: nothing is promised for new ones. For a promise, give "
        "validation=… to the report, rows that the fit has not seen."
    )
    return section


def _score(value: float) -> str:
    """Return a score to three places, or to none where it is in the thousands, as errors of amounts are; – for NaN."""
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"

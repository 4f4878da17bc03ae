r"""How long a fit trains, and at which rate, where it is not told: from the number of examples and the network's width.

A rate of LoRA that is good for one width is too high for a wider network: the best one falls as a power of the width,
with nearly the same exponent in families of language models
([Schulman et al. 2025](https://thinkingmachines.ai/blog/lora/), "LoRA Without Regret"). Few examples are seen more
often, because adapters, whose `B` starts at 0, need some steps to leave their start, and more of them beside loud
noise; but very few are soon learned by heart, so that they are seen no more than eight times.
"""

import statistics

from bayeslora.adapters import AdaptedNetwork
from bayeslora.methods import Method

RATE, RATE_WIDTH, RATE_POWER = 1e-3, 384, 0.78
"""Peak learning rate of LoRA at a width, and how it falls with the width."""

WIDTHS = (64, 16_384)
"""Narrower and wider networks have the rate of these widths: the law was not measured there."""

FEWEST_EPOCHS, MOST_EPOCHS, MOST_OF_MORE = 3.0, 8.0, 6.0
"""With its more steps a method makes no more than the last: with hard examples, MonteCLoRA is worse after 8 than 6."""


def learning_rate(network: AdaptedNetwork, method: Method) -> float:
    r"""Return the peak learning rate: $10^{-3} (384 / d)^{0.78}$.

    It is multiplied by the method's own factor. d is the width of the network: the median of the numbers of features
    that go into its adapted layers.
    """
    widths = [stack.d_in for stack in network.stacks.values() for _ in range(stack.num_layers) if not stack.in_head]
    width = min(max(statistics.median(widths or [RATE_WIDTH]), WIDTHS[0]), WIDTHS[1])
    return float(f"{RATE * (RATE_WIDTH / width) ** RATE_POWER * method.rate_factor:.2g}")


def epochs(num_examples: int, batch_size: int, method: Method) -> float:
    """Return the passes over the data: 3, or as many as make 200 steps, but no more than 8.

    A method whose `fewest_steps` are more than those of `Method` makes as many in no more than 6 passes.
    """
    steps_an_epoch = num_examples / batch_size
    usual = min(Method.fewest_steps / steps_an_epoch, MOST_EPOCHS)
    own = min(method.fewest_steps / steps_an_epoch, MOST_OF_MORE)
    return float(round(max(FEWEST_EPOCHS, usual, own)))

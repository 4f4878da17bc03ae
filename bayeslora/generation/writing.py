"""Continue prompts by draws of a language model, or by their average."""

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayeslora.adapters import AdaptedNetwork, check_frozen
from bayeslora.adapters.layer import NotFoldedError
from bayeslora.adapters.stack import draws_at
from bayeslora.contracts import ArgumentError
from bayeslora.data import to_device
from bayeslora.generation.prompts import is_encoder_decoder
from bayeslora.generation.settings import refusing
from bayeslora.generation.text import Generation, Text
from bayeslora.isolation import at_work
from bayeslora.limits import limits
from bayeslora.metrics import FloatArray
from bayeslora.networks import forward_parameters
from bayeslora.prediction import chunks
from bayeslora.program import Program, evaluating
from bayeslora.surroundings import outside
from bayeslora.tasks.language_model import CausalLM, Seq2SeqLM, Summaries
from bayeslora.types import IGNORED, FactorsByStack, Sites, Tokenizer

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel


def generate(
    program: Program,
    sites: Sites,
    prompts: Mapping[str, Tensor],
    average: bool,
    tokenizer: Tokenizer | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Generation:
    """Continue prompts, with torch's current random state.

    Args:
        program: The program; it keeps its mode, and its network is left without factors.
        sites: Draws, `[draw, layer, …]`.
        prompts: The model's inputs, as `encode` makes them.
        average: Whether the average of the draws writes one text, instead of each draw one.
        tokenizer: Turns tokens into texts.
        settings: Settings of the model's own `generate`.

    Raises:
        ValueError: If several texts per prompt are asked for; or, with `average`, anything but greedy search and
            sampling.
    """
    network = program.network
    check_frozen(network)
    settings = settings or {}
    with refusing(settings):
        config, others = _settings(network.model, dict(settings), average, getattr(prompts, "ends", ()))
    _check_room(network.model, prompts, config)
    if config.stop_strings not in (None, []):
        others["stopping_criteria"] = [*(others.get("stopping_criteria") or ()), _stopping(config, tokenizer)]
        config.stop_strings = None
    prompts = to_device(prompts, program.device)
    num_draws = len(next(iter(sites.values())))
    try:
        with evaluating(program), torch.inference_mode(), at_work(network), refusing(settings):
            factors = program.factors_at(sites)
            if average:
                parts = [_average(network, factors, num_draws, prompts, config, others)]
            else:
                written = []
                for index in range(num_draws):
                    network.bind(draws_at(factors, index))
                    written.append(_continue(network.model, prompts, config, others))
                parts = [_score(network, factors, num_draws, prompts, *one) for one in written]
    finally:
        network.unbind()
    return _together(parts, config, tokenizer)


def _stopping(config: "GenerationConfig", tokenizer: Tokenizer | None) -> Any:
    """Return what ends a text at one of the strings of a configuration; an `ArgumentError` if they cannot be found."""
    from transformers.generation import StopStringCriteria

    asked: Any = config.stop_strings
    if not all([asked] if isinstance(asked, str) else asked):
        raise ArgumentError(f"stop_strings={asked!r}: every text ends in an empty one. Leave it out.")
    if tokenizer is None:
        raise ArgumentError(f"stop_strings={asked!r}: the posterior has no tokenizer: fit with tokenizer=….")
    own: Any = StopStringCriteria
    try:
        return own(tokenizer, asked)
    except ValueError as error:  # it looks for a text of its own in what the tokenizer makes of it
        raise ArgumentError(
            f"stop_strings={asked!r}: {type(tokenizer).__name__} does not know every letter, and transformers cannot "
            f"tell what its tokens add to a text ({error}). Leave it out, and cut the texts; or give eos_token_id=…."
        ) from error


def _settings(
    model: nn.Module, settings: dict[str, Any], average: bool, ends: Sequence[int] = ()
) -> tuple["GenerationConfig", dict[str, Any]]:
    """Return the configuration for generation, and the settings that are not part of it.

    Args:
        model: The model.
        settings: What is asked for.
        average: Whether the draws write together.
        ends: Tokens that end a text beside the model's own, unless the settings say which do.
    """
    from transformers.generation import GenerationMode

    own: Any = model.generation_config
    config = copy.deepcopy(settings.pop("generation_config", None) or own)
    others = config.update(**settings)
    if config.eos_token_id is None:
        config.eos_token_id = own.eos_token_id
    if ends and settings.get("eos_token_id") is None:
        known = [] if config.eos_token_id is None else _ends(config)
        config.eos_token_id = list(dict.fromkeys([*known, *ends]))
    if config.pad_token_id is None:
        config.pad_token_id = own.pad_token_id if own.pad_token_id is not None else _ends(config)[0]
    config.return_dict_in_generate = False  # tokens are all that is needed
    if average:
        config.disable_compile = True  # what `Mixture` records at each step cannot be part of a graph
    if (config.num_return_sequences or 1) > 1:
        raise ArgumentError(
            f"num_return_sequences={config.num_return_sequences}: a draw writes one text for each prompt. Ask for more "
            "draws, or repeat the prompts."
        )
    mode = config.get_generation_mode(others.get("assistant_model"))
    plain = mode in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE) and not config.prefill_chunk_size
    if average and not (plain and (config.guidance_scale or 1) == 1):
        raise ArgumentError(
            f"The average of draws writes one token after another, but the settings ask for {mode.value}, a prompt in "
            "chunks, or guidance: leave them out for greedy search, set do_sample=True, or let every draw write, "
            "average=False."
        )
    return config, others


def _check_room(model: nn.Module, prompts: Mapping[str, Tensor], config: "GenerationConfig") -> None:
    """Raise an `ArgumentError` if a text would go beyond a model's table of positions."""
    longest, given = limits(model).longest, prompts["input_ids"].shape[1]
    if longest is None or is_encoder_decoder(model):
        return
    new = config.max_new_tokens or max((config.max_length or 0) - given, 1)
    if given + new > longest:
        raise ArgumentError(
            f"The longest prompt has {given} tokens, and {new} more are to be written, but the model has {longest} "
            "positions: shorten the prompt, or lower max_new_tokens."
        )


def _ends(config: "GenerationConfig") -> list[int]:
    """Return the tokens that end a text; token 0, to pad with, if there are none."""
    ids = config.eos_token_id
    return [0] if ids is None else [ids] if isinstance(ids, int) else list(ids)


class Ends:
    """Stopping criteria, together, and the sequences that they have ended."""

    def __init__(self, criteria: Sequence[Any]):
        from transformers.generation import StoppingCriteriaList

        self.criteria: Any = StoppingCriteriaList(criteria)
        self.ended: set[tuple[int, ...]] = set()

    def __call__(self, ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return which sequences end, `[sequence]`."""
        done = self.criteria(ids, scores, **kwargs)
        self.ended.update(map(tuple, ids[done].tolist()))
        return done

    def where(self, sequences: Tensor, start: int) -> np.ndarray:
        """Return whether each token behind the start is one that a sequence ended with, `[sequence, token]`."""
        rows, longest = sequences.tolist(), sequences.shape[1]
        ends = [[tuple(row[: index + 1]) in self.ended for index in range(start, longest)] for row in rows]
        return np.asarray(ends, dtype=bool).reshape(len(rows), longest - start)


def _continue(
    model: "PreTrainedModel", prompts: Mapping[str, Tensor], config: "GenerationConfig", others: Mapping[str, Any]
) -> tuple[Tensor, np.ndarray]:
    """Return the model's sequences, including what they start with, and which written tokens criteria ended them at."""
    criteria = Ends(others.get("stopping_criteria") or ())
    if criteria.criteria:
        others = {**others, "stopping_criteria": [criteria]}
    with outside():
        sequences = model.generate(**prompts, generation_config=config, **others)
    return sequences, criteria.where(sequences, _start(model, prompts))


def _start(model: nn.Module, prompts: Mapping[str, Tensor]) -> int:
    """Return how many tokens of a sequence were not written: the prompt, or the first of an encoder-decoder."""
    return 1 if is_encoder_decoder(model) else prompts["input_ids"].shape[1]


def _score(
    network: AdaptedNetwork,
    factors: FactorsByStack,
    num_draws: int,
    prompts: Mapping[str, Tensor],
    written: Tensor,
    stopped: np.ndarray,
) -> Text:
    """Score given texts, `[prompt, token]`, under every draw, in one pass over all of their tokens."""
    model, start = network.model, _start(network.model, prompts)
    tokens = written[:, start:]
    likelihood: type[CausalLM | Seq2SeqLM]
    if is_encoder_decoder(model):
        likelihood, first = Seq2SeqLM, 0
        labels = tokens
        inputs = {**prompts, "decoder_input_ids": written[:, :-1]}
    else:
        likelihood, first = CausalLM, start
        labels = F.pad(tokens, (start, 0), value=IGNORED)
        mask = F.pad(prompts["attention_mask"], (0, tokens.shape[1]), value=1)
        inputs = {**prompts, "input_ids": written, "attention_mask": mask}
        if "position_ids" in forward_parameters(model):
            # Unless it is given positions, as by `generate`, a model counts padding on the left.
            inputs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
        if "token_type_ids" in prompts:  # the written tokens have the prompt's last type
            types = prompts["token_type_ids"]
            inputs["token_type_ids"] = torch.cat([types, types[:, -1:].expand_as(tokens)], 1)
    config: Any = model.config
    collector = Summaries(likelihood(config.get_text_config().vocab_size), with_labels=True)
    collector.add(np.arange(len(tokens)), {"labels": labels.cpu()}, chunks(network, factors, inputs, num_draws))
    scored = collector.result()

    def place(values: FloatArray) -> FloatArray:
        grid = np.full((*values.shape[:-1], *tokens.shape), np.nan)
        grid[..., scored.rows.example, scored.rows.position - first] = values
        return grid

    log_probs = scored.row_log_likelihood(scored.tokens)
    return Text(tokens.cpu().numpy(), place(log_probs), place(scored.entropy), place(scored.aleatoric), stopped)


def _average(
    network: AdaptedNetwork,
    factors: FactorsByStack,
    num_draws: int,
    prompts: Mapping[str, Tensor],
    config: "GenerationConfig",
    others: Mapping[str, Any],
) -> Text:
    """Write one text per prompt, each token from the probabilities averaged over draws."""
    size = len(prompts["input_ids"])
    model: Any = network.model
    begun = {"decoder_input_ids": torch.zeros_like(prompts["input_ids"][:, :1])} if is_encoder_decoder(model) else {}
    folds = num_draws == 1 or network.folds(factors, {**prompts, **begun})
    network.bind(factors, num_draws * size if num_draws > 1 else None, apart=not folds)
    with Mixture(num_draws, size).of(model) as mixture:
        try:
            written, stopped = _continue(model, prompts, config, others)
        except NotFoldedError:
            raise ArgumentError(
                f"{type(model).__name__} does not keep the batch first in every adapted layer, or runs without a "
                "cache, so that draws cannot write together: leave use_cache on, or let every draw write, "
                "average=False."
            ) from None
    return mixture.text(written[:, _start(model, prompts) :], stopped)


class Mixture:
    r"""A context in which the next token has the draws' average distribution, $\frac1S \sum_s p_s(y_t \mid y_{<t})$.

    Its `generate` sees one row per prompt. Inside the model every draw has its own row, and with it its own cache; the
    logits that it returns are the logarithm of the averaged probabilities, plus the average of their constants.

    Args:
        num_draws: S.
        size: Prompts.
    """

    def __init__(self, num_draws: int, size: int):
        self.num_draws = num_draws
        self.size = size
        self.last: Tensor | None = None
        self.log_probs: list[Tensor] = []
        self.entropy: list[Tensor] = []
        self.aleatoric: list[Tensor] = []

    @contextlib.contextmanager
    def of(self, model: "PreTrainedModel") -> Iterator["Mixture"]:
        """Give a model this distribution; restore it afterwards."""
        hooks = [
            model.register_forward_pre_hook(self.spread, with_kwargs=True),
            model.register_forward_hook(self.mix, with_kwargs=True),
        ]
        if is_encoder_decoder(model):  # `generate` runs the encoder separately, once
            hooks.append(model.get_encoder().register_forward_pre_hook(self.spread, with_kwargs=True))
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()

    def spread(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Repeat the rows of all inputs for every draw; the outputs of an encoder have them already."""
        return args, {
            # Vectors are positions, which all rows share.
            name: value.repeat(self.num_draws, *[1] * (value.dim() - 1))
            if isinstance(value, Tensor) and value.dim() > 1 and len(value) == self.size
            else value
            for name, value in kwargs.items()
        }

    def mix(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Average the next token's probabilities over draws."""
        ids = kwargs["decoder_input_ids" if is_encoder_decoder(module) else "input_ids"]
        if self.last is not None:
            self.choose(ids[: self.size, -1])
        logits = output.logits[:, -1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).view(self.num_draws, self.size, -1)
        self.last = logits.log_softmax(-1)
        mixture = self.last.logsumexp(0) - math.log(self.num_draws)
        self.entropy.append(torch.special.entr(mixture.exp()).sum(-1))
        self.aleatoric.append(torch.special.entr(self.last.exp()).sum(-1).mean(0))
        # A penalty for repetition asks whether a logit is positive: alike draws keep their own.
        output.logits = (mixture + logits.logsumexp(-1, keepdim=True).mean(0))[:, None]
        return output

    def choose(self, tokens: Tensor) -> None:
        """Record how probable the last tokens were, `[prompt]`."""
        assert self.last is not None
        self.log_probs.append(self.last.gather(-1, tokens.expand(self.num_draws, -1)[..., None])[..., 0])

    def text(self, tokens: Tensor, stopped: np.ndarray) -> Text:
        """Return the written tokens, `[prompt, token]`, with their probabilities."""
        self.choose(tokens[:, -1])
        # On some devices, `generate` stops one pass after all texts have ended.
        log_probs, entropy, aleatoric = (
            torch.stack(steps[: tokens.shape[1]], dim=-1).cpu().double().numpy()
            for steps in (self.log_probs, self.entropy, self.aleatoric)
        )
        return Text(tokens.cpu().numpy(), log_probs, entropy, aleatoric, stopped)


def _together(texts: Sequence[Text], config: "GenerationConfig", tokenizer: Tokenizer | None) -> Generation:
    """Combine texts of any lengths in one grid, without anything after their ends."""
    longest = max(text.tokens.shape[-1] for text in texts)

    def grid(values: Sequence[np.ndarray], fill: float) -> np.ndarray:
        gaps = ([(0, 0)] * (value.ndim - 1) + [(0, longest - value.shape[-1])] for value in values)
        return np.stack([np.pad(v, gap, constant_values=fill) for v, gap in zip(values, gaps, strict=True)], axis=-3)

    ends = _ends(config) if config.eos_token_id is not None else []
    written = []
    for text in texts:
        last = np.isin(text.tokens, ends) | text.stopped
        written.append((last.cumsum(-1) - last) == 0)
    in_text = grid(written, fill=False)
    tokens = np.where(in_text, grid([text.tokens for text in texts], 0), config.pad_token_id)
    log_probs, entropy, aleatoric = (
        np.where(in_text, grid([getattr(text, name) for text in texts], np.nan), np.nan)
        for name in ("log_probs", "entropy", "aleatoric")
    )
    decoded = None
    if tokenizer is not None:
        decoded = tuple(
            tuple(tokenizer.decode(row[kept], skip_special_tokens=True) for row, kept in zip(rows, kepts, strict=True))
            for rows, kepts in zip(tokens, in_text, strict=True)
        )
    return Generation(tokens, in_text, log_probs, entropy, aleatoric, decoded)

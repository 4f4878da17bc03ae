"""A posterior as a model of EleutherAI's evaluation harness, `lm-eval`: its tasks run on the average of the draws."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from torch import nn

from bayeslora.contracts import Fields, Kind, Within, checked
from bayeslora.limits import limits
from bayeslora.loading import load
from bayeslora.networks import continues
from bayeslora.posterior import Posterior
from bayeslora.tasks import templates
from bayeslora.types import IGNORED, BatchSize, Folder, ModelName, Seed

try:
    from lm_eval.api.model import LM as Base
except ImportError:  # its methods can be called without the harness

    class Base:  # type: ignore[no-redef]
        """What the harness would ask for."""

        cache_hook: Any = None

        def __init__(self) -> None:
            pass


MOST_NEW = 256
"""Tokens that are written at most where a task does not say how many."""

COUNTS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call the most tokens that are written, the first that counts first."""

STOPS = ("until", "stop")
"""What tasks call the strings that end a text."""

OF_THE_HARNESS = ("device", "max_batch_size", "trust_remote_code")
"""What the harness's command line adds, which the posterior has already."""

Digits = Annotated[str, Kind("its digits", lambda value: value.isdecimal() and 0 < int(value) < 2**31)]
"""A number as the harness's command line passes it."""


class HarnessModel(Base):
    r"""A posterior over a causal language model, for `lm_eval.simple_evaluate(model=HarnessModel(posterior), …)`.

    The log-likelihood of a continuation is that of the mixture, $\ln \frac1S \sum_s p_s(y)$: the probability of the
    whole continuation is averaged over draws. It counts as greedy if each of its tokens is the most probable next one
    of the draws' average. Texts are written by the average of the draws, token by token.

    Args:
        posterior: A posterior with a tokenizer, or the folder of one.
        num_draws: Draws of the weights, S; 0 for the centre.
        batch_size: Texts per batch.
        seed: Seed of the draws; all requests have the same.
        model: The base model, for a folder that does not name one that can be loaded.

    Raises:
        ArgumentError: If an argument does not fit.
        ValueError: If there is no tokenizer, or the model does not continue texts.
    """

    @checked(lambda _: Fields(dict.fromkeys(OF_THE_HARNESS, Any), "HarnessModel", "argument"))
    def __init__(
        self,
        posterior: Posterior | Folder,
        num_draws: Annotated[int, Within(at_least=0, at_most=1_000_000)] = 8,
        batch_size: BatchSize | Digits = 16,
        seed: Seed = 0,
        model: nn.Module | ModelName | None = None,
        **others: Any,
    ):
        super().__init__()
        self.posterior = posterior if isinstance(posterior, Posterior) else load(posterior, model)
        network = self.posterior.network.model
        if self.posterior.tokenizer is None or not continues(network):
            raise ValueError(
                f"{type(network).__name__} with{'' if self.posterior.tokenizer else 'out'} a tokenizer cannot be asked:"
                " fit a causal language model, with tokenizer=…."
            )
        self.tokenizer: Any = self.posterior.tokenizer
        self.num_draws, self.batch_size, self.seed = num_draws, int(batch_size), seed
        longest = min(self.tokenizer.model_max_length, limits(network).trained or 2**31)
        self.max_length = int(longest)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation in nats, and whether it is the greedy one.

        Args:
            requests: Each with `args`, a context and its continuation. Of what is too long, the beginning is left out.
            disable_tqdm: For the harness.
        """
        pairs = [self._pair(*request.args) for request in requests]
        answers = [(value, greedy) for value, greedy in self._scored(pairs)]
        for request, answer in zip(requests, answers, strict=True):
            self._cache("loglikelihood", request.args, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text in nats, read in windows if it is long; every token is scored once."""
        pairs = [(self._prefix(), self._tokens(request.args[0], False)) for request in requests]
        answers = [value for value, _ in self._scored(pairs)]
        for request, answer in zip(requests, answers, strict=True):
            self._cache("loglikelihood_rolling", request.args, answer)
        return answers

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what follows each context, up to the first of the strings in `until`."""
        answers = []
        for request in requests:
            context, asked = request.args
            ids = self._tokens(context) or self._prefix()
            until, most, settings = self._asked(asked, len(ids))
            if not most:
                answers.append("")
                continue
            few = {"center": True} if not self.num_draws else {"num_draws": self.num_draws, "average": True}
            ids, seed = ids[-(self.max_length - most) :], settings.pop("seed", self.seed)
            written = self.posterior.generate([ids], seed=seed, max_new_tokens=most, **few, **settings)
            assert written.texts is not None
            answer = written.texts[0][0]
            for stop in until:
                answer = answer.split(stop)[0]
            self._cache("generate_until", request.args, answer)
            answers.append(answer)
        return answers

    def _asked(self, asked: Mapping[str, Any], length: int) -> tuple[list[str], int, dict[str, Any]]:
        """Return what ends a text, how many tokens it has at most, and settings of `generate`, as a task says them."""
        settings = dict(asked)
        given = [settings.pop(name, None) or [] for name in STOPS]
        until = [stop for each in given for stop in ([each] if isinstance(each, str) else each) if stop]
        counts = [count for name in COUNTS if (count := settings.pop(name, None)) is not None]
        if (whole := settings.pop("max_length", None)) is not None:  # with what is asked
            counts.append(max(whole - length, 0))
        # Unless the task says how many, what is asked stays whole as long as it can.
        most = int(counts[0]) if counts else min(MOST_NEW, max(self.max_length - length, self.max_length // 2))
        if not 0 <= most < self.max_length:
            raise ValueError(
                f"The task asks for {most} tokens, and the model reads {self.max_length} with what they answer: set "
                "max_gen_toks to fewer, as in simple_evaluate(…, gen_kwargs={'max_gen_toks': 32})."
            )
        heat, samples = settings.pop("temperature", None), settings.pop("do_sample", None)
        if heat != 0 and (samples if samples is not None else heat):
            return until, most, {"do_sample": True} | ({} if heat is None else {"temperature": heat}) | settings
        of_samples = ("top_p", "top_k", "min_p", "typical_p")
        return until, most, {"do_sample": False} | {n: v for n, v in settings.items() if n not in of_samples}

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the text of a conversation by the tokenizer's template, or the default one."""
        return self.tokenizer.apply_chat_template(
            templates.as_read(chat_history, self.tokenizer),
            chat_template=self.tokenizer.chat_template or templates.TEMPLATE,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the template, by which the harness tells cached requests apart."""
        return self.tokenizer.chat_template or templates.TEMPLATE if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name, by which the harness tells cached requests apart."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def _cache(self, kind: str, args: Any, answer: Any) -> None:
        if self.cache_hook is not None:
            self.cache_hook.add_partial(kind, args, answer)

    def _prefix(self) -> list[int]:
        """Return the token that stands before everything: the one that begins a text, or the one that ends it."""
        begin = self.tokenizer.bos_token_id
        begin = self.tokenizer.eos_token_id if begin is None else begin
        return [0 if begin is None else int(begin)]

    def _tokens(self, text: str, special: bool = True) -> list[int]:
        """Return the tokens of a text, without one that ends it; a text that a template wrote begins itself."""
        begin, end = self.tokenizer.bos_token, self.tokenizer.eos_token_id
        special = special and not (begin and text.startswith(begin))
        ids = list(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
        return ids[:-1] if special and end is not None and len(ids) > 1 and ids[-1] == end else ids

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the tokens of a context and of its continuation, cut where the context alone ends."""
        kept = context.rstrip()
        if not kept:
            return self._prefix(), self._tokens(context + continuation, False)
        context, continuation = kept, context[len(kept) :] + continuation
        before, whole = self._tokens(context), self._tokens(context + continuation)
        return (whole[: len(before)], whole[len(before) :]) if before else (self._prefix(), whole)

    def _windows(self, context: list[int], continuation: list[int]) -> Iterator[tuple[list[int], int]]:
        """Yield rows that fit, as full of what comes before as can be, and how many of their last tokens are scored."""
        ids, first = [*context, *continuation], len(context)
        while first < len(ids):
            end = min(len(ids), max(first + self.max_length - 1, 1))
            start = max(end - self.max_length, 0)
            yield ids[start:end], end - first
            first = end

    def _scored(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether every token is the most probable one."""
        rows, owner = [], []
        for index, pair in enumerate(pairs):
            for ids, count in self._windows(*pair):
                labels = [IGNORED] * (len(ids) - count) + ids[len(ids) - count :]
                rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
                owner.append(index)
        if not rows:
            return [(0.0, True)] * len(pairs)
        few = {"center": True} if not self.num_draws else {"num_draws": self.num_draws}
        found: Any = self.posterior.predict(rows, seed=self.seed, batch_size=self.batch_size, **few)
        by_row: Any = found.log_likelihood(found.labels)  # [draw, row]
        by_pair = np.stack([np.bincount(owner, values, len(pairs)) for values in by_row])
        right = np.ones(len(pairs), dtype=bool)
        np.logical_and.at(right, np.asarray(owner)[found.rows.example], found.predicted == found.labels)
        totals = np.logaddexp.reduce(by_pair, axis=0) - np.log(len(by_pair))
        return [(float(total), bool(greedy)) for total, greedy in zip(totals, right, strict=True)]


try:
    from lm_eval.api.registry import register_model

    register_model("bayeslora")(HarnessModel)
except ImportError:
    pass

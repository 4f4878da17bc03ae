"""The posterior that a fit returns."""

from bayeslora.posterior.deciding import Deciding
from bayeslora.posterior.diagnosing import Diagnosing
from bayeslora.posterior.distilling import Distilling
from bayeslora.posterior.remembering import Remembering
from bayeslora.posterior.sharing import Sharing


class Posterior(Distilling, Deciding, Diagnosing, Remembering, Sharing):
    """A posterior over the adapters of a network.

    Args:
        program: The fitted program.
        history: What happened in training, a mapping of equally long columns.
        temperature: Divides every logit; see `calibrate`.
        tokenizer: For data that is text.
        class_names: Names of the classes, or None.
        columns: The columns of the training data that were read; None if that is not known.

    Attributes:
        program: Model, guide and ELBO as one module.
        state: What broke the fit off, and where, if it was not finished; None if it was.
        tuning: How loud it is, and how that was found, if its dial was set by prediction; None otherwise.
        held_out: The rows that predictions decide by; None without `decide`.
        weighted: Whether rows had weights in the fit.
        labels_seen: A digest of the labels of the fit, by which other data is told from it; None if there is none.
        learned_from: The posterior that was the prior of this one's fit; None without one, and after `load`.
        data_collator: Makes a batch of rows; None to pad and stack them, as after `load`.
        example: Inputs of two examples of the fit, on which merged and exported models are compared; None after `load`.
            Then they are compared on random tokens or pixels, where the model takes them.
    """

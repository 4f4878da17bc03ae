"""Text written by draws of a language model, or by their average."""

from bayeslora.generation.prompts import encode
from bayeslora.generation.settings import of_posterior as settings_of
from bayeslora.generation.text import Generation
from bayeslora.generation.writing import generate

__all__ = ["Generation", "encode", "generate", "settings_of"]

"""The checker behind jaxtyping's annotations: as the type checker does, it takes an int where a float is asked for."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))

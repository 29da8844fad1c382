"""The tests; and the type checker that pytest puts under every function of the package."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""An int is welcome where a float is expected."""

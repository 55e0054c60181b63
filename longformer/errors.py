"""What goes wrong because of what the user gave us: one family of exceptions, each message names value and remedy."""


class LongformerError(ValueError):
    """Bad input of any kind. The command line prints its message alone and exits with status 2."""


class ConfigError(LongformerError):
    """A config.json, or arguments of ``LongformerConfig``, that describe no Longformer."""


class CheckpointError(LongformerError):
    """A checkpoint that cannot be found, read, or fitted to the model."""


class DataError(LongformerError):
    """A question, document or data file that cannot be used."""

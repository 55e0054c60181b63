"""Checkpoints: their files, weights, and the names of weights. :mod:`longformer.hub` finds or downloads the files.

Read in this order: ``folder``, which files make a checkpoint; ``weights``, how tensors are read; ``names``, how names
of any year are fitted to a model; ``tokenizer_files``.
"""

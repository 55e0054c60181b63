"""Checkpoints on disk and on the hub: files, weights, and the names of weights.

Read in this order: ``folder``, which files make a checkpoint; ``weights``, how tensors are read; ``names``, how names
of any year are fitted to a model; ``hub``, how files are found or downloaded; ``tokenizer_files``.
"""

"""The model: its layers, its heads, and how it is loaded and saved.

Read in this order: ``encoder``, the model from top to bottom; ``layers`` and ``attention``, its parts; ``batch``, how
inputs are checked and padded; ``heads``, what solves a task; ``pretrained``, loading and saving. ``packed`` is the fast
engine, which computes the same. ``linear`` chooses the library for a linear layer, ``precision`` lowers the precision.
"""

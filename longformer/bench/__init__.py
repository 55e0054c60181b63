"""What ``longformer bench`` measures: ours against whatever else is installed, once all agree on the result.

``timing`` and ``peak`` measure, ``attention``, ``model``, ``training``, ``qa``, ``scaling`` and ``memory`` say what,
``rivals`` builds the others, and ``report`` and ``plot`` show it. ``results/`` keeps runs with hardware and versions.
"""

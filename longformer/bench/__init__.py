"""``longformer bench``: our attention and our models measured beside others that are installed.

No time is taken before all contenders agree on the result. Read the files in this order:

1. ``problem``: what is computed, that is shapes, patterns and inputs. ``rivals``: the attention of other packages.
2. ``clocks``: one for the CPU, one for a GPU. ``machine``: hardware, versions, and the speed of matrix products.
   ``timing``: contenders agree, then take turns. ``peak``: the peak memory of one run, in a process of its own.
3. One file a benchmark: ``attention``, ``scaling``, ``model``, ``training``, ``qa``, ``precision``, ``memory``.
4. The benchmark of the GPU's kernels: ``gpu_device``, ``gpu_checks``, ``gpu_measure``, ``gpu_report``, ``gpu``.
5. ``formats``: how numbers are written. ``report``: JSON and tables. ``plot``: pictures.
6. ``options`` and ``cli``: the command.

``results/`` keeps reports of past runs, with their hardware and versions.
"""

"""The methods of attribution by name; without torch, for the command's help."""

METHODS = ("integrated-gradients", "attention-gradient", "rollout")
STEPS = 8  # of integrated gradients

"""Questions answered over documents of any length, and how good the answers are."""

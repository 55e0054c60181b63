"""Other packages' models with our parts inside. Each module needs its package, so it is imported by name alone."""

"""The model: its layers, its heads, and how it is loaded and saved."""

"""The training loop of both stages, and what lets it survive."""

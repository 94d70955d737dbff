"""Folds, lists, episodes and their loading."""

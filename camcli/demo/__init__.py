"""Scenes with known shapes, and the training and evaluation of the embedded model on them. Imports any room but cli."""

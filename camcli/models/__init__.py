"""A source of classifiers is one file here; weights and labels. Imports images and what is before it."""

"""A run from plan to end. Imports every room above it: config, images, models, engine, render, results."""

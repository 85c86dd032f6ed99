"""One forward pass, the gradients of the tail, and every method's maps. Imports models and what is above it."""

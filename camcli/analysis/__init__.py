"""What looks at a folder of images as a whole. Imports pipeline and the rooms above it."""

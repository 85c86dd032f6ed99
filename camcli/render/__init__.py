"""Heat to colour, overlays, grids and map files. Imports images and config."""

"""camcli: batch class-activation heatmaps for folders of images."""

__version__ = "0.1.0"

"""Writers turn one result into files of the run folder, each kind of file in its own module."""

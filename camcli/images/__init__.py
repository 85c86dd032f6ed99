"""From files to model inputs: finding, decoding, preprocessing, and the box that an input covers. Imports config."""

"""The page of a run folder: what `camcli report` builds from records, overlays and maps, without torch."""

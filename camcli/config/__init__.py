"""The strict schema of a run, and YAML with the place of every value. Imports only errors, records and registry."""

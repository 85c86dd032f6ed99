"""The command line: parsing, printing, progress. Imports any room; nothing imports it."""

"""Small faults put into the code on purpose, each with the tests that should notice it."""

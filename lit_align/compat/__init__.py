"""Borders to libraries: one module per library for every patch of its private parts and every use of them."""

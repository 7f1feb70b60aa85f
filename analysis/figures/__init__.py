"""Figures from run folders: each a PDF, a PNG and the CSV behind it."""

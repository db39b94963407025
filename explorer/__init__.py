"""The live pages of explore.py, one marimo notebook for each stage."""

"""Judging pictures and answers of the world of shapes."""

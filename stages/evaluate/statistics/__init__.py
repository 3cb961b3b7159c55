"""Figures with their intervals: pure functions of numbers, that know no file, no model and no recipe."""

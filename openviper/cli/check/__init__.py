"""Checks of ``viperctl email check``, one module for each subject."""
